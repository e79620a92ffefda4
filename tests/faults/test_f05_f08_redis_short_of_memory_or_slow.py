# SPDX-License-Identifier: Apache-2.0
"""F5, F6 and F8: META out of memory, BLOB evicting while it is read, META that does not answer for a while."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.faults.chaos import Traffic
from tests.faults.client import Client
from tests.faults.ledger import READY
from tests.faults.mesh import LEASE_S, FaultMesh
from tests.faults.model_orders import ModelOrders, model_bytes
from tests.faults.seeds import replayable, seeds
from tests.faults.stalls import STALLS, command, short_of_memory, stall, used_bytes


async def published(client: Client, name: str, size_bytes: int = 1000) -> str:
    version = await client.push(name, model_bytes(random.Random(name).randbytes(size_bytes)))
    key = await client.order(name, version)
    assert (await client.end_of(key)).phase == READY
    return key


async def test_f05_meta_out_of_memory_refuses_in_so_many_words_and_what_runs_goes_on(mesh: FaultMesh) -> None:
    client = mesh.client()
    key = await published(client, "before")
    mesh.hold_once("hold")
    held = await client.push("held", model_bytes(b"held", ModelOrders(phase="gating", hold="hold")))
    running = await client.order("held", held)
    await client.seen_in(running, "gating")

    await command(mesh.meta, "CONFIG", "SET", "maxmemory", await used_bytes(mesh.meta) // 2)
    refused = mesh.client(cap_s=1.0)
    with pytest.raises(AssertionError, match="RESOURCE_EXHAUSTED.*out of memory"):
        await refused.push("during", model_bytes(b"during"))
    await client.fetch(key)
    assert await client.artifacts() == [key]
    await asyncio.sleep(3 * LEASE_S)  # the fault's length: leases would have ended
    await command(mesh.meta, "CONFIG", "SET", "maxmemory", 0)

    await client.cancel(running)
    await published(client, "after")
    claims = [step for step in mesh.steps() if step.key == running and step.what == "claimed"]
    assert len(claims) == 1, "the lease was not renewed while memory was short"
    mesh.ledger.kills["meta out of memory"] += 1
    await mesh.settle(client)
    await mesh.audit(client)


async def test_f05_meta_out_of_memory_under_load_loses_nothing(mesh: FaultMesh) -> None:
    for seed in seeds(3):
        with replayable(seed):
            rng = random.Random(seed)
            client = mesh.client()
            users = [Traffic(client, random.Random(rng.random()), f"m{seed}-{number}") for number in range(3)]
            working = asyncio.gather(*(user.run(8) for user in users))
            for _ in range(3):
                await asyncio.sleep(rng.uniform(0, 0.3))  # the moment of the fault
                await short_of_memory(mesh, rng)
            await working
            await mesh.settle(client)
            await mesh.audit(client)


async def test_f06_chunks_evicted_under_eight_readers_are_never_an_error(mesh: FaultMesh) -> None:
    client = mesh.client()
    keys = [await published(client, f"m-{number}", 5_000_000) for number in range(4)]
    await command(mesh.blob, "CONFIG", "SET", "maxmemory", await used_bytes(mesh.blob) - 15_000_000)

    async def read(reader: int) -> None:
        rng = random.Random(reader)
        own = mesh.client()
        for _ in range(4):
            assert await own.fetch(rng.choice(keys)) is not None

    await asyncio.gather(*(read(number) for number in range(8)))

    assert (await command(mesh.blob, "INFO", "stats"))["evicted_keys"] > 0
    assert not mesh.ledger.refusals
    await mesh.audit(client)


@pytest.mark.parametrize("kind", STALLS)
async def test_f08_meta_that_stalls_for_less_than_two_leases_has_no_build_published_twice(
    mesh: FaultMesh, kind: str
) -> None:
    client = mesh.client()
    for seed in seeds(3):
        with replayable(seed):
            rng = random.Random(seed)
            users = [Traffic(client, random.Random(rng.random()), f"m{seed}-{number}") for number in range(3)]
            working = asyncio.gather(*(user.run(6) for user in users))
            await asyncio.sleep(rng.uniform(0, 0.3))  # the moment of the fault
            await stall(mesh, rng, kind)
            await working
            await mesh.settle(client)
            await mesh.audit(client)
