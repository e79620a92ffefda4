# SPDX-License-Identifier: Apache-2.0
"""F1: META is killed under load, or loses power with its last second: what was acknowledged holds, and holds once."""

from __future__ import annotations

import asyncio
import random

from tests.faults.chaos import Traffic, chaos_round
from tests.faults.mesh import FaultMesh, until
from tests.faults.seeds import replayable, seeds


async def test_f01_redis_killed_at_random_moments_loses_nothing(mesh: FaultMesh) -> None:
    for seed in seeds(10):
        with replayable(seed):
            await chaos_round(mesh, seed, targets=["meta"], kills=4)
    await mesh.audit(mesh.client(), everything=True)


async def test_f01_redis_that_loses_its_last_second_to_a_power_cut_loses_nothing_durable(mesh: FaultMesh) -> None:
    """The log is cut at a random byte of what was written after some moment (`appendfsync everysec`).

    Models, artifacts and names are in the durable tier before they are acknowledged, so they are there again. An order
    that had not ended may be gone, as after F2; who wants it places it again.
    """
    for seed in seeds(8):
        with replayable(seed):
            await _cut_power_under_load(mesh, seed)
    await mesh.audit(mesh.client(forgetful=True), everything=True)


async def _cut_power_under_load(mesh: FaultMesh, seed: int) -> None:
    rng = random.Random(seed)
    client = mesh.client(forgetful=True)
    users = [Traffic(client, random.Random(rng.random()), f"m{seed}-{number}") for number in range(3)]
    done = asyncio.Event()

    async def cut() -> None:
        for _ in range(2):
            safe_bytes = mesh.meta.log_bytes()
            answered = mesh.ledger.operations.total() + rng.randint(3, 20)
            await until(lambda: mesh.ledger.operations.total() >= answered or done.is_set())  # noqa: B023
            await mesh.meta.cut_power(safe_bytes, rng)
            mesh.ledger.kills["meta power cut"] += 1
            await mesh.meta.start()

    cutting = asyncio.create_task(cut())
    await asyncio.gather(*(user.run(8) for user in users))
    done.set()
    await cutting
    await mesh.settle(client)
    await mesh.audit(client)
