# SPDX-License-Identifier: Apache-2.0
"""F7 as devices see it: FLUSHALL on both roles, again and again, while one real node serves and another one pulls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dovetail.fingerprint import Fingerprint
from dovetail.pb.v1 import artifacts_pb2
from dovetail.probe import measure
from dovetail.store.redis_connection import connect
from tests.fakes.compiler_mesh import Mesh, compiler_mesh, register_digits, worker
from tests.fakes.node_process import NodeProcess
from tests.fixtures_redis import RedisServer

IMAGE = np.random.default_rng(7).standard_normal((1, 1, 8, 8)).astype(np.float32)
LIMIT_S = 60.0


class Caller:
    """Asks a node without a pause and keeps what it answers."""

    def __init__(self, node: NodeProcess) -> None:
        self._node = node
        self.answers: list[np.ndarray] = []  # type: ignore[type-arg]

    async def run(self) -> None:
        while True:
            self.answers.append(await self._node.infer(IMAGE))

    async def hears(self, more: int) -> None:
        """Wait for so many more answers."""
        wanted = len(self.answers) + more
        async with asyncio.timeout(LIMIT_S):
            while len(self.answers) < wanted:
                await asyncio.sleep(0.005)


async def test_f07_nodes_serve_and_pull_through_flushall_on_both_roles(
    redis_factory: Callable[..., RedisServer], tmp_path: Path
) -> None:
    machine = await measure()
    meta, blob = redis_factory(), redis_factory("--maxmemory-policy", "allkeys-lfu")
    async with compiler_mesh(meta.url, tmp_path / "core", DOVETAIL_BLOB_REDIS_URL=blob.url) as mesh:
        before = await _built(mesh, machine)
        address = f"127.0.0.1:{mesh.rpc.port}"
        serves, pulls = (
            NodeProcess("edge_agent", tmp_path / name, address, "--node", name) for name in ("serves", "pulls")
        )
        async with serves.running(DOVETAIL_MEASURE="no", DOVETAIL_ORDER_BUILDS="no"):
            await serves.until_ready()
            caller = Caller(serves)
            calling = asyncio.create_task(caller.run())
            async with pulls.running(DOVETAIL_MEASURE="no", DOVETAIL_ORDER_BUILDS="no"):
                ready, flushes = asyncio.create_task(pulls.until_ready()), 0
                while not ready.done():  # from before it asks for an offer until it has proven the artifact
                    await asyncio.gather(_flush(meta), _flush(blob))
                    flushes += 1
                    await caller.hears(100)
                await ready
                pulled = await pulls.infer(IMAGE)
                await caller.hears(20)
                await _until_both_have_reported(mesh)
            assert not calling.done(), "a request of the serving node failed"
            calling.cancel()
            await asyncio.gather(calling, return_exceptions=True)
        after = await _artifacts(mesh)

    assert flushes > 1
    assert len(before) == 1
    assert after == before
    assert all(np.array_equal(answer, pulled) for answer in caller.answers)


async def _built(mesh: Mesh, machine: Fingerprint) -> list[bytes]:
    await register_digits(mesh, calibration=False)
    async with worker(mesh, machine):
        await mesh.compile("digits", "ort-fp32", fingerprint_json=machine.to_bytes())
    return await _artifacts(mesh)


async def _artifacts(mesh: Mesh) -> list[bytes]:
    """All manifests."""
    listed = await mesh.artifacts.ListArtifacts(artifacts_pb2.ListArtifactsRequest(model="digits"))
    return [artifact.manifest_json for artifact in listed.artifacts]


async def _flush(server: RedisServer) -> None:
    redis = connect(server.url)
    try:
        await redis.call("FLUSHALL")
    finally:
        await redis.aclose()


async def _until_both_have_reported(mesh: Mesh) -> None:
    async with asyncio.timeout(LIMIT_S):
        while {node.id for node in await mesh.storage.index.nodes()} != {"serves", "pulls"}:
            await asyncio.sleep(0.02)
