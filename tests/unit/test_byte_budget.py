# SPDX-License-Identifier: Apache-2.0
"""A bound on bytes that is never broken, first come, first served; and pacing."""

import asyncio

import pytest

from dovetail.clock import ManualClock
from dovetail.rpc.byte_budget import ByteBudget
from dovetail.rpc.rate_limit import BURST_S, RateLimit


async def until_waiting() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_who_asked_first_gets_first_even_if_the_next_would_fit() -> None:
    budget = ByteBudget(10)
    await budget.take(8)
    order: list[str] = []

    async def taker(name: str, size_bytes: int) -> None:
        await budget.take(size_bytes)
        order.append(name)

    tasks = [asyncio.create_task(taker("large", 6)), asyncio.create_task(taker("small", 2))]
    await until_waiting()
    assert order == []
    assert not budget.try_take(1), "nobody passes those who wait"
    budget.give_back(8)
    await asyncio.gather(*tasks)

    assert order == ["large", "small"]
    assert (budget.held_bytes, budget.peak_bytes) == (8, 8)


async def test_one_that_gives_up_its_place_lets_the_next_in() -> None:
    budget = ByteBudget(10)
    await budget.take(6)
    large = asyncio.create_task(budget.take(8))
    small = asyncio.create_task(budget.take(4))
    await until_waiting()

    large.cancel()
    await small

    assert budget.held_bytes == 10


async def test_one_that_is_cancelled_at_the_moment_of_its_turn_keeps_nothing() -> None:
    budget = ByteBudget(10)
    await budget.take(10)
    waiting = asyncio.create_task(budget.take(4))
    await until_waiting()

    budget.give_back(10)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)

    assert budget.held_bytes == 0


async def test_many_takers_never_hold_more_than_the_bound() -> None:
    budget = ByteBudget(64)

    async def taker(number: int) -> None:
        for size_bytes in (number % 17 + 1, 64, 3):
            await budget.take(size_bytes)
            await asyncio.sleep(0)
            budget.give_back(size_bytes)

    await asyncio.gather(*(taker(number) for number in range(100)))

    assert budget.peak_bytes == 64
    assert budget.held_bytes == 0


class Sleeper:
    """Advances the clock instead of waiting."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock

    async def __call__(self, seconds: float) -> None:
        self.clock.advance(seconds)


@pytest.mark.parametrize("size_bytes", [1, 100, 2500])
async def test_bytes_pass_at_the_rate_whatever_their_portions(size_bytes: int) -> None:
    clock = ManualClock()
    rate = RateLimit(1000, clock=clock, sleep=Sleeper(clock))
    started_s = clock.monotonic_s()

    for _ in range(10_000 // size_bytes + 1):
        await rate.take(size_bytes)

    assert clock.monotonic_s() - started_s == pytest.approx(
        10_000 // size_bytes * size_bytes / 1000, abs=BURST_S + 0.01
    )


async def test_a_pause_is_not_made_up_for_by_a_burst() -> None:
    clock = ManualClock()
    rate = RateLimit(1000, clock=clock, sleep=Sleeper(clock))
    await rate.take(1000)
    clock.advance(3600)
    started_s = clock.monotonic_s()

    for _ in range(5):
        await rate.take(1000)

    assert clock.monotonic_s() - started_s == pytest.approx(4.0, abs=BURST_S + 0.01)


async def test_without_a_rate_nothing_waits() -> None:
    clock = ManualClock()
    rate = RateLimit(0, clock=clock, sleep=Sleeper(clock))

    for _ in range(100):
        await rate.take(1 << 30)

    assert clock.monotonic_s() == ManualClock().monotonic_s()
