# SPDX-License-Identifier: Apache-2.0
"""The artifact cache over gRPC on loopback: a hit, a negotiation, and how fast chunks come.

Real processes: a private Redis, the compiler service and a worker, started as `dovetail up` does. The chunks are random
bytes (nothing to compress), written to the durable tier beforehand, so that the first pass reads the disk's page cache
and the second one Redis.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from dovetail.artifact import CHUNK_BYTES
from dovetail.cli.demo.assets import digits_folder
from dovetail.client import connect_async
from dovetail.digest import sha256_hex
from dovetail.mesh import FREE_PORTS, Mesh, MeshOptions
from dovetail.pb.v1 import artifacts_pb2
from dovetail.pb.v1.artifacts_pb2_grpc import ArtifactCacheStub
from dovetail.probe import measure
from dovetail.rpc.channel import open_channel
from dovetail.store.codec import unpack
from dovetail.store.disk import DiskChunkStore
from tests.bench.figures import Figure, percentile

CALLS = 500
CHUNKS = 256
PASSES = 5


def run() -> list[Figure]:
    """Measure."""
    return asyncio.run(_run())


async def _run() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="dovetail-bench-") as root:
        options = MeshOptions(data_dir=Path(root), environ=os.environ, ports=FREE_PORTS)
        async with Mesh(options) as mesh:
            for node in ("runtime", "agent"):
                await mesh.stop(node)
            return [*await _hits(mesh), *await _chunks(mesh, Path(root))]


async def _hits(mesh: Mesh) -> list[Figure]:
    machine = await measure()
    async with connect_async(mesh.compiler_address) as client:
        await client.push("digits", digits_folder() / "digits.onnx")
        (build,) = await client.build_all("digits", recipes=("ort-fp32",))
        manifest = await _times(lambda: client.manifest(build.artifact_key))
        negotiation = await _times(lambda: client.negotiate("digits", machine))
        nodes = await _times(client.nodes)
    note = f"{CALLS} calls one after another; p99 {{:.2f}} ms; ListNodes takes {percentile(nodes, 50):.2f} ms"
    return [
        Figure(
            "artifact-cache hit over gRPC, p50", percentile(manifest, 50), "ms", 5.0,
            note=note.format(percentile(manifest, 99)),
        ),
        Figure(
            "negotiation over gRPC, one artifact, p50", percentile(negotiation, 50), "ms",
            note=note.format(percentile(negotiation, 99)),
        ),
    ]  # fmt: skip


async def _times(call: Callable[[], Awaitable[object]]) -> list[float]:
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        await call()
        times.append((time.perf_counter() - start) * 1000)
    return times


async def _chunks(mesh: Mesh, root: Path) -> list[Figure]:
    store = DiskChunkStore(root / "blobs")
    digests = []
    for _ in range(CHUNKS):
        data = os.urandom(CHUNK_BYTES)
        digests.append(sha256_hex(data))
        await store.put(digests[-1], data)
    hashing = _hashing_rate()
    async with open_channel(mesh.compiler_address) as channel:
        cold = await _rate(channel, digests)
        warm = percentile([await _rate(channel, digests) for _ in range(PASSES)], 50)
    note = f"{CHUNKS} chunks of 1 MiB - 4 KiB, one stream, each verified; sha256 alone runs at {hashing:.0f} MB/s here"
    return [
        Figure("chunk fetch on loopback, from Redis", warm, "MB/s", 300.0, lower_is_better=False, note=note),
        Figure(
            "chunk fetch on loopback, first time",
            cold,
            "MB/s",
            lower_is_better=False,
            note="durable tier, refills Redis",
        ),
    ]


async def _rate(channel: object, digests: list[str]) -> float:
    stub = ArtifactCacheStub(channel)
    start = time.perf_counter()
    count = 0
    async for chunk in stub.FetchChunks(artifacts_pb2.FetchChunksRequest(digests=digests)):
        plain = unpack(chunk.codec, chunk.data)
        assert sha256_hex(plain) == digests[count]
        count += 1
    assert count == len(digests)
    return count * CHUNK_BYTES / 1e6 / (time.perf_counter() - start)


def _hashing_rate() -> float:
    data = os.urandom(CHUNK_BYTES)
    start = time.perf_counter()
    for _ in range(100):
        sha256_hex(data)
    return 100 * CHUNK_BYTES / 1e6 / (time.perf_counter() - start)
