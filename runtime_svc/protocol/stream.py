# SPDX-License-Identifier: Apache-2.0
"""ModelStreamInfer's order of events: requests run together, replies leave in the order of the requests.

A stream's requests are started as they come, so that they can share batches, but no more than a bound at once: then
the stream is not read further, and gRPC's flow control holds the client back. What one request does is given from
outside.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

_RequestT = TypeVar("_RequestT")
_ReplyT = TypeVar("_ReplyT")

MAX_IN_FLIGHT = 64  # a few batches of the usual sizes; more would only take memory


async def replies_in_order(
    requests: AsyncIterator[_RequestT],
    answer: Callable[[_RequestT], Awaitable[_ReplyT]],
    *,
    max_in_flight: int = MAX_IN_FLIGHT,
) -> AsyncIterator[_ReplyT]:
    """Answers to all requests, in their order, each as soon as it and those before it are there.

    Ends when the requests have ended and all are answered. An error of `answer` or of the requests ends it at that
    place. When the consumer stops, whatever still runs is cancelled.
    """
    started: asyncio.Queue[asyncio.Task[_ReplyT] | None] = asyncio.Queue()
    room = asyncio.Semaphore(max_in_flight)
    running: set[asyncio.Task[_ReplyT]] = set()

    async def start_all() -> None:
        try:
            while True:
                await room.acquire()  # before the next request is read, so that the bound holds for messages, too
                request = await anext(requests, None)
                if request is None:
                    return
                task = asyncio.ensure_future(_run(answer, request))
                running.add(task)
                task.add_done_callback(running.discard)
                started.put_nowait(task)
        finally:
            started.put_nowait(None)

    reader = asyncio.ensure_future(start_all())
    try:
        while (task := await started.get()) is not None:
            yield await task
            room.release()
        await reader
    finally:
        unread = [started.get_nowait() for _ in range(started.qsize())]
        left = [reader, *running, *(task for task in unread if task is not None)]
        for task_left in left:
            task_left.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def _run(answer: Callable[[_RequestT], Awaitable[_ReplyT]], request: _RequestT) -> _ReplyT:
    return await answer(request)
