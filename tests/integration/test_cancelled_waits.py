# SPDX-License-Identifier: Apache-2.0
"""A wait that is cancelled just as it ends is cancelled: who cancels waits for that, at the end of a process."""

from __future__ import annotations

import asyncio

import pytest

from compiler_svc.redis_guard import RedisGuard
from compiler_svc.storage import pause
from dovetail.store.redis_connection import connect

TURNS = 4
"""Turns of the event loop between the end of the wait and the cancellation; by the last one the wait has returned."""


@pytest.mark.parametrize("turns", range(TURNS))
async def test_a_guard_ends_also_if_redis_came_back_just_before(turns: int, redis_url: str) -> None:
    redis = connect(redis_url)
    guard = RedisGuard(redis, redis)
    await guard.start()
    await asyncio.sleep(0)  # it waits now
    redis.back.set()
    for _ in range(turns):
        await asyncio.sleep(0)

    async with asyncio.timeout(30):
        await guard.aclose()
    await redis.aclose()


@pytest.mark.parametrize("turns", range(TURNS))
async def test_a_pause_that_is_cancelled_as_the_stop_comes_is_cancelled(turns: int) -> None:
    stop, waits = asyncio.Event(), asyncio.Event()

    async def pausing() -> None:
        waits.set()
        await pause(stop, 60)
        await asyncio.Event().wait()

    task = asyncio.create_task(pausing())
    await waits.wait()
    stop.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()

    done, _ = await asyncio.wait((task,), timeout=30)
    assert [item.cancelled() for item in done] == [True]
