# SPDX-License-Identifier: Apache-2.0
"""F22: workers and services whose wall clocks are a day off, or in 1970: leases live by Redis' clock alone."""

from __future__ import annotations

import asyncio
import time

from tests.faults.ledger import READY
from tests.faults.mesh import LEASE_S, FaultMesh
from tests.faults.model_orders import ModelOrders, model_bytes
from tests.faults.worker_process import CLOCK_SHIFT

DAY_S = 24 * 3600


async def test_f22_workers_and_service_with_wrong_clocks_build_everything_once(mesh: FaultMesh) -> None:
    client = mesh.client()
    await asyncio.gather(*(worker.kill() for worker in mesh.workers.values()))
    await mesh.kill_service()
    await mesh.start_service(**{CLOCK_SHIFT: str(-time.time() + 3600)})  # a board without a battery: 1970
    for shift_s in (DAY_S, -DAY_S, 400 * DAY_S):
        await mesh.start_worker(f"shifted{shift_s}".replace("-", "m"), **{CLOCK_SHIFT: str(shift_s)})
    keys = []
    for number in range(9):
        orders = ModelOrders(build_ms=int(2.5 * LEASE_S * 1000) if number < 3 else 20)
        version = await client.push(f"m-{number}", model_bytes(str(number).encode(), orders))
        keys.append(await client.order(f"m-{number}", version))

    builds = await asyncio.gather(*(client.end_of(key) for key in keys))

    assert {build.phase for build in builds} == {READY}
    assert {build.attempts for build in builds} == {1}
    assert len({step.worker for step in mesh.steps()}) == 3
    await mesh.audit(client)


async def test_f22_lease_of_a_dead_worker_ends_though_the_others_clocks_are_behind(mesh: FaultMesh) -> None:
    client = mesh.client()
    await asyncio.gather(*(worker.kill() for worker in mesh.workers.values()))
    ahead = await mesh.start_worker("ahead", **{CLOCK_SHIFT: str(DAY_S)})
    mesh.hold_once("hold")
    version = await client.push("tiny", model_bytes(b"", ModelOrders(hold="hold")))
    key = await client.order("tiny", version)
    await client.seen_in(key, "building")
    await ahead.kill()
    await mesh.start_worker("behind", **{CLOCK_SHIFT: str(-DAY_S)})

    build = await client.end_of(key)

    assert (build.phase, build.attempts) == (READY, 2)
    await mesh.audit(client)
