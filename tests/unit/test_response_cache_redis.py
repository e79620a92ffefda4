# SPDX-License-Identifier: Apache-2.0
"""Replies in Redis while it fails, hangs or is slow: nobody waits for long, and it is found again."""

from __future__ import annotations

import asyncio

import pytest

from dovetail.clock import ManualClock
from dovetail.errors import UnavailableError
from runtime_svc.response_cache.redis_store import MAX_ENTRY_BYTES, MAX_WRITES, PAUSE_S, RedisStore
from tests.fakes.fake_reply_redis import FakeReplyRedis


@pytest.mark.parametrize("held", [False, True])
async def test_redis_that_does_not_answer_is_a_miss_and_is_left_alone_for_a_while(held: bool) -> None:
    redis, clock = FakeReplyRedis(), ManualClock()
    store = RedisStore(redis, clock=clock)
    redis.held, redis.failure = held, None if held else UnavailableError("gone")

    missed = [await store.get("k") for _ in range(3)]
    store.put_later("k", b"x")
    calls_while_gone = redis.calls
    redis.held, redis.failure = False, None
    clock.advance(PAUSE_S)
    store.put_later("k", b"x")
    await store.settled()

    assert missed == [None] * 3
    assert calls_while_gone == 1
    assert await store.get("k") == b"x"


async def test_a_question_goes_on_without_whoever_asked_and_the_next_asks_again() -> None:
    redis, clock = FakeReplyRedis(), ManualClock()
    store = RedisStore(redis, clock=clock)
    redis.held = True

    slow = await store.get("k")
    clock.advance(PAUSE_S)
    slow_again = await store.get("k")
    await asyncio.sleep(0)  # the second is told that it is given up

    assert (slow, slow_again) == (None, None)
    assert (redis.unanswered, redis.given_up) == (1, 1)  # the first still finds its way; of the others none piles up
    assert store.failures == 2
    await store.close()
    assert redis.unanswered == 0


async def test_whoever_goes_away_takes_the_question_along() -> None:
    redis = FakeReplyRedis()
    redis.held = True
    store = RedisStore(redis, clock=ManualClock())

    asking = asyncio.create_task(store.get("k"))
    while not redis.unanswered:
        await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    while redis.unanswered:
        await asyncio.sleep(0)

    assert store.failures == 0


async def test_too_much_is_not_written_to_redis() -> None:
    redis = FakeReplyRedis()
    redis.held = True
    store = RedisStore(redis, clock=ManualClock())

    store.put_later("large", bytes(MAX_ENTRY_BYTES + 1))
    for number in range(MAX_WRITES * 2):
        store.put_later(str(number), b"x")
    for _ in range(3):  # each write begins a question of its own
        await asyncio.sleep(0)

    assert redis.calls == MAX_WRITES
    await store.close()
