# SPDX-License-Identifier: Apache-2.0
"""F25: garbage is collected all the time while models are pushed, built, fetched and deleted; parts die meanwhile."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.faults.chaos import chaos_round
from tests.faults.client import Client
from tests.faults.ledger import READY
from tests.faults.mesh import FaultMesh, until
from tests.faults.model_orders import model_bytes
from tests.faults.seeds import replayable, seeds

OFTEN = {"DOVETAIL_GC_PERIOD_S": "0.2", "DOVETAIL_GC_GRACE_S": "4"}
"""The grace is at least twice as long as an upload or build here takes, as the setting asks for."""


def chunk_files(mesh: FaultMesh) -> int:
    """Chunks in the durable tier."""
    folder = mesh.root / "data" / "blobs" / "cas"
    return sum(1 for path in folder.rglob("*") if path.is_file() and len(path.name) == 64)


@pytest.fixture
async def collecting(mesh: FaultMesh) -> FaultMesh:
    """A mesh whose service collects garbage all the time."""
    await mesh.kill_service()
    mesh.environ |= OFTEN
    await mesh.start_service()
    return mesh


async def test_f25_what_was_deleted_is_collected_and_what_was_not_stays(collecting: FaultMesh) -> None:
    mesh, client = collecting, collecting.client()
    keys = [await published(client, f"m-{number}") for number in range(6)]
    before = chunk_files(mesh)

    for number in range(3):
        await client.delete(f"m-{number}")
    await until(lambda: chunk_files(mesh) == before - 3)  # the content of each; their goldens are the same bytes

    for key in keys[3:]:
        assert await client.fetch(key) is not None
    await mesh.audit(client)


async def test_f25_content_that_comes_again_while_it_is_collected_is_never_lost(collecting: FaultMesh) -> None:
    """The same bytes are pushed and deleted again and again, at random distances around the grace."""
    client = collecting.client()
    rng = random.Random(seeds(1)[0])

    async def again(name: str, data: bytes) -> None:
        for _ in range(4):
            version = await client.push(name, data)
            key = await client.order(name, version)
            if (await client.end_of(key)).phase == READY:
                assert await client.fetch(key) is not None
            await client.delete(name)
            await asyncio.sleep(rng.uniform(0, 1.5))  # distances of the fault
        version = await client.push(name, data)
        await client.order(name, version)

    await asyncio.gather(*(again(f"m-{number}", model_bytes(rng.randbytes(50_000))) for number in range(4)))
    await collecting.settle(client)
    await collecting.audit(client)


async def test_f25_collection_under_load_and_kills_loses_nothing(collecting: FaultMesh) -> None:
    for seed in seeds(5):
        with replayable(seed):
            await chaos_round(collecting, seed, targets=["meta", "service", "worker"], kills=3, actions=10)
    await collecting.audit(collecting.client(), everything=True)


async def published(client: Client, name: str) -> str:
    version = await client.push(name, model_bytes(name.encode()))
    key = await client.order(name, version)
    assert (await client.end_of(key)).phase == READY
    return key
