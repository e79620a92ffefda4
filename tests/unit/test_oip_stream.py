# SPDX-License-Identifier: Apache-2.0
"""Order, bound and end of a stream's requests, without gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from runtime_svc.protocol.stream import replies_in_order


class Source:
    """Numbers from 0; counts how many were read."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.read = 0

    async def __aiter__(self) -> AsyncIterator[int]:
        for number in range(self._count):
            self.read += 1
            yield number


async def test_replies_keep_the_order_of_requests_that_finish_in_another() -> None:
    done = [asyncio.Event() for _ in range(4)]

    async def answer(number: int) -> int:
        if number + 1 < len(done):
            await done[number + 1].wait()  # each waits for the one after it
        done[number].set()
        return number

    replies = [reply async for reply in replies_in_order(aiter(Source(4)), answer)]

    assert replies == [0, 1, 2, 3]


async def test_no_more_than_the_bound_is_read_while_nothing_is_answered() -> None:
    source, go_on = Source(100), asyncio.Event()

    async def answer(number: int) -> int:
        await go_on.wait()
        return number

    replies = replies_in_order(aiter(source), answer, max_in_flight=5)
    first = asyncio.ensure_future(anext(replies))
    for _ in range(50):
        await asyncio.sleep(0)
    read_while_held = source.read
    go_on.set()
    rest = [await first, *[reply async for reply in replies]]

    assert read_while_held == 5
    assert rest == list(range(100))


async def test_an_error_ends_the_stream_at_its_place_and_stops_what_still_runs() -> None:
    stopped: list[int] = []

    async def answer(number: int) -> int:
        if number == 1:
            raise ValueError("broken")
        if number > 1:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                stopped.append(number)
                raise
        return number

    replies = replies_in_order(aiter(Source(10)), answer, max_in_flight=4)
    first = await anext(replies)
    with pytest.raises(ValueError, match="broken"):
        await anext(replies)

    assert first == 0
    assert stopped
    assert len(asyncio.all_tasks()) == 1  # only this test


async def test_errors_of_the_requests_themselves_reach_the_consumer() -> None:
    async def requests() -> AsyncIterator[int]:
        yield 1
        raise ConnectionError("gone")

    async def answer(number: int) -> int:
        return number

    replies = replies_in_order(requests(), answer)

    assert await anext(replies) == 1
    with pytest.raises(ConnectionError, match="gone"):
        await anext(replies)
