# SPDX-License-Identifier: Apache-2.0
"""A fleet at once: one build, one read of each chunk, one crossing of the WAN; and pulls that are killed in pieces."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import grpc.aio
import numpy as np
import pytest

from compiler_svc import storage as storage_module
from dovetail.artifact import CHUNK_BYTES, Manifest
from dovetail.digest import sha256_hex
from dovetail.fingerprint import Fingerprint
from dovetail.pb.v1 import artifacts_pb2 as pb
from dovetail.pb.v1.artifacts_pb2_grpc import ArtifactCacheStub
from dovetail.pb.v1.compiler_pb2 import CompileRequest
from dovetail.pb.v1.compiler_pb2_grpc import CompilerStub
from dovetail.rpc.chunk_reader import PIECE_BYTES, ReadSettings, Unfinished, read_chunks
from dovetail.rpc.chunk_sender import SendLimits
from dovetail.store.disk import DiskChunkStore
from dovetail.store.encoded import EncodedChunk
from dovetail.store.redis_connection import RedisConnection
from runtime_svc.acquire.local_cache import LocalCache
from runtime_svc.acquire.needed import needed_files
from tests.fakes.cache_site import address_of, cache_site
from tests.fakes.chunk_service import chunk_service
from tests.fakes.compiler_mesh import Mesh, compiler_mesh, machine_of, register_digits, worker
from tests.fakes.link import Link
from tests.fakes.node_nursery import nursery
from tests.fakes.node_process import NodeProcess
from tests.fakes.node_works import WINDOW_BYTES
from tests.fakes.scripted_build import ScriptedBuild
from tests.fakes.tiny_artifacts import manifest_of, random_bytes

NODES = 500
PULLS = 100  # of 1.7 MB each through one process; that five hundred readers share reads is shown in memory elsewhere
CHANNELS = 10
XEON = machine_of("xeon-skylake-no-vnni")
IMAGE = np.zeros((1, 1, 8, 8), np.float32)


class CountedDisk(DiskChunkStore):
    """The durable tier, with a count of what is read from it."""

    reads: Counter[str] = Counter()  # noqa: RUF012 - the test sets a fresh one

    async def get(self, digest: str) -> bytes | None:
        self.reads[digest] += 1
        return await super().get(digest)

    async def get_encoded(self, digest: str) -> EncodedChunk | None:
        self.reads[digest] += 1
        return await super().get_encoded(digest)


async def forget_hot_chunks(redis: RedisConnection) -> None:
    for key in await redis.call("KEYS", "c:*"):
        await redis.call("UNLINK", key)


async def ordered(channel: grpc.aio.Channel) -> str:
    """The artifact that a node asked for, once it is built."""
    request = CompileRequest(model="digits", recipes=["ort-fp32"], fingerprint_json=XEON.to_bytes())
    keys = [event.build.artifact_key async for event in CompilerStub(channel).Compile(request)]
    return keys[-1]


async def pulled(channel: grpc.aio.Channel, key: str) -> int:
    """Bytes of all files, checked."""
    stub = ArtifactCacheStub(channel)
    reply = await stub.GetManifest(pb.GetManifestRequest(artifact_key=key))
    manifest = Manifest.from_bytes(reply.manifest_json)
    sizes = {chunk.digest: chunk.size_bytes for entry in manifest.files for chunk in entry.chunks}
    received = 0
    async for chunk in read_chunks(stub, sizes, settings=ReadSettings(), unfinished=Unfinished()):
        received += sizes[chunk.digest]
    return received


async def test_five_hundred_nodes_that_want_one_missing_artifact_cost_one_build_and_one_read_of_each_chunk(
    redis_url: str, redis: RedisConnection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "DiskChunkStore", CountedDisk)
    monkeypatch.setattr(CountedDisk, "reads", Counter())
    build = ScriptedBuild()
    async with compiler_mesh(redis_url, tmp_path) as mesh, AsyncExitStack() as stack:
        await register_digits(mesh, calibration=False)
        address = f"127.0.0.1:{mesh.rpc.port}"
        channels = [await stack.enter_async_context(grpc.aio.insecure_channel(address)) for _ in range(CHANNELS)]
        async with worker(mesh, XEON, run=build):
            keys = set(await asyncio.gather(*(ordered(channels[n % CHANNELS]) for n in range(NODES))))
        await forget_hot_chunks(redis)
        CountedDisk.reads.clear()

        received = await asyncio.gather(*(pulled(channels[n % CHANNELS], *keys) for n in range(PULLS)))

    assert len(keys) == len(build.specs) == 1
    assert len(set(received)) == 1
    assert received[0] > 0
    assert set(CountedDisk.reads.values()) == {1}


async def test_nodes_of_a_site_pull_a_real_artifact_over_the_wan_once(
    redis_url: str, tmp_path: Path, fingerprint: Fingerprint
) -> None:
    async with compiler_mesh(redis_url, tmp_path / "core") as mesh:
        manifest = await built(mesh, fingerprint)
        wire = {chunk.digest: chunk.size_bytes for entry in needed_files(manifest) for chunk in entry.chunks}
        async with cache_site(f"127.0.0.1:{mesh.rpc.port}", tmp_path / "site") as site:
            names = ("first", "second")
            nodes = [NodeProcess("edge_agent", tmp_path / name, address_of(site), "--node", name) for name in names]
            async with AsyncExitStack() as stack:
                for node in nodes:
                    await stack.enter_async_context(node.running(DOVETAIL_MEASURE="no", DOVETAIL_ORDER_BUILDS="no"))
                for node in nodes:
                    await node.until_ready()
                answers = [await node.infer(IMAGE) for node in nodes]
                async with asyncio.timeout(60):
                    while {entry.id for entry in await mesh.storage.index.nodes()} != set(names):
                        await asyncio.sleep(0.02)
            stats = site.stats()

    assert np.array_equal(answers[0], answers[1])
    assert stats["misses"] == len(wire)
    assert stats["upstream_bytes"] <= sum(wire.values()), "each chunk crossed once, as it is stored"
    assert stats["served_bytes"] >= 2 * stats["upstream_bytes"]


async def built(mesh: Mesh, machine: Fingerprint) -> Manifest:
    await register_digits(mesh, calibration=False)
    async with worker(mesh, machine):
        await mesh.compile("digits", "ort-fp32", fingerprint_json=machine.to_bytes())
    listed = await mesh.artifacts.ListArtifacts(pb.ListArtifactsRequest(model="digits"))
    return Manifest.from_bytes(listed.artifacts[0].manifest_json)


async def test_a_pull_in_pieces_that_is_killed_again_and_again_costs_what_was_in_flight(tmp_path: Path) -> None:
    """A real process, a real service, SIGKILL at random bytes; a chunk comes in some dozen pieces."""
    data = random_bytes(6 * CHUNK_BYTES, 3)
    pieces = [data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]
    manifest = manifest_of({"model.onnx": data}, chunk_bytes=CHUNK_BYTES)
    path, root, rng, kills = tmp_path / "manifest.json", tmp_path / "node", random.Random(1), 0
    path.write_bytes(manifest.to_bytes())
    async with (
        chunk_service(*pieces, limits=SendLimits(memory_bytes=16 << 20)) as service,
        Link(service.address).running() as link,
        nursery() as young,
    ):
        for attempt in range(21):
            child = await young.start("fetch", root=str(root), address=link.address, manifest=str(path))
            byte = rng.randrange(len(data) // 3) if attempt < 20 else 1 << 62
            link.at_byte, link.then = link.down_bytes + byte, child.kill
            code = await child.code()
            link.at_byte = None
            if code == 0:
                break
            assert code == -signal.SIGKILL
            kills += 1
        spent = link.down_bytes

    in_flight = WINDOW_BYTES + 2 * CHUNK_BYTES + 2 * PIECE_BYTES
    assert kills >= 3
    assert spent <= len(data) * 1.02 + kills * in_flight
    with LocalCache(root).verified(manifest) as files:
        assert sha256_hex(files["model.onnx"].read_bytes()) == sha256_hex(data)
