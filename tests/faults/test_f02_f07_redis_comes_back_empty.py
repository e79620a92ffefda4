# SPDX-License-Identifier: Apache-2.0
"""F2 and F7: META loses everything, by a restart or by FLUSHALL, and is filled again from the durable tier.

Records of builds that had not ended are not in the durable tier: their orders are placed again by who wants them, and
that is allowed here. What was published, pushed or named is there again without anybody's doing, and no node is told
to take less than it has.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.faults.chaos import Traffic
from tests.faults.client import Client
from tests.faults.ledger import READY
from tests.faults.mesh import FaultMesh, until
from tests.faults.model_orders import model_bytes
from tests.faults.seeds import replayable, seeds
from tests.faults.stalls import empty


@asynccontextmanager
async def node_that_watches(client: Client, model: str, key: str) -> AsyncIterator[list[str]]:
    """A node's view for the block: every choice that it is offered; the first is there when the block begins."""
    seen: list[str] = []
    watching = asyncio.create_task(client.watch_choices(model, seen))
    try:
        await until(lambda: key in seen)
        yield seen
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def published(client: Client, name: str) -> str:
    version = await client.push(name, model_bytes(name.encode()))
    key = await client.order(name, version)
    assert (await client.end_of(key)).phase == READY
    return key


@pytest.mark.parametrize("fault", ["restart", "flushall"])
async def test_f02_f07_nothing_published_is_lost_and_no_node_is_told_less(mesh: FaultMesh, fault: str) -> None:
    client = mesh.client(forgetful=True)
    keys = [await published(client, f"m-{number}") for number in range(4)]
    await client.alias("m-0", "prod", 1)

    async with node_that_watches(client, "m-0", keys[0]) as choices:
        for _ in range(3):
            await empty(mesh, random.Random(0), fault)
            await asyncio.gather(*(client.fetch(key) for key in keys))
            assert sorted(await client.artifacts()) == sorted(keys)
    assert set(choices) == {keys[0]}
    model = await client.stored("m-0", 1)
    assert model is not None
    assert list(model.aliases) == ["prod"]
    await mesh.audit(client)


async def test_f02_redis_that_restarts_empty_under_load(mesh: FaultMesh) -> None:
    for seed in seeds(6):
        with replayable(seed):
            await _lose_under_load(mesh, seed, kind="restart")
    await mesh.audit(mesh.client(forgetful=True), everything=True)


async def test_f07_flushall_on_both_roles_under_load(mesh: FaultMesh) -> None:
    for seed in seeds(6):
        with replayable(seed):
            await _lose_under_load(mesh, seed, kind="flushall")
    await mesh.audit(mesh.client(forgetful=True), everything=True)


async def _lose_under_load(mesh: FaultMesh, seed: int, *, kind: str) -> None:
    rng = random.Random(seed)
    client = mesh.client(forgetful=True)
    traffic = [Traffic(client, random.Random(rng.random()), f"m{seed}-{number}") for number in range(3)]

    async def lose() -> None:
        for _ in range(3):
            answered = mesh.ledger.operations.total() + rng.randint(3, 20)
            await until(lambda answered=answered: mesh.ledger.operations.total() >= answered or done.is_set())
            await empty(mesh, rng, kind)

    done = asyncio.Event()
    losing = asyncio.create_task(lose())
    await asyncio.gather(*(user.run(8) for user in traffic))
    done.set()
    await losing
    await mesh.settle(client)
    await mesh.audit(client)


@pytest.mark.parametrize("program", ["service", "worker"])
async def test_f07_wrong_eviction_policy_on_meta_refuses_to_start_and_says_why(mesh: FaultMesh, program: str) -> None:
    await mesh.meta.kill()
    mesh.meta.options += ["--maxmemory-policy", "allkeys-lru"]
    await mesh.meta.start()

    process = await mesh.start(program, "refused")

    assert await process.wait() == 1
    assert "maxmemory-policy" in mesh.log_of(process)
    assert "noeviction" in mesh.log_of(process)
