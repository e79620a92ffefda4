# SPDX-License-Identifier: Apache-2.0
"""The replies of one request on their way from an engine's thread to the event loop: few places, and both ends may go.

Made on the loop. `put`, `push` and `finish` belong to the thread, `get` and `abandon` to the loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing

from dovetail.errors import CancelledError, DovetailError, UnsupportedError
from dovetail.tensor import Array

PLACES = 8
"""Replies that wait to be read before the model has to: enough for both to work at once, and little memory."""


class CallerGoneError(CancelledError):
    """Nobody reads the replies any more."""


class ReplyBuffer:
    """See the module.

    Args:
        places: Most replies that wait.
        on_room: Called on the loop whenever there is room again.

    Attributes:
        abandoned: The reader has left; for any thread.
        on_end: Called once, when the reader has come to the end or has left and there are no more replies; from any
            thread.
    """

    def __init__(self, places: int = PLACES, on_room: Callable[[], None] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._places = places
        self._on_room = on_room
        self._room = threading.Condition()
        self._replies: deque[Mapping[str, Array]] = deque()
        self._arrived = asyncio.Event()
        self._finished = False
        self._left = False  # the reader came to the end, or abandoned
        self._fault: DovetailError | None = None
        self.abandoned = False
        self.on_end: Callable[[], None] | None = None

    @property
    def has_room(self) -> bool:
        """True while a reply may be put without a wait; for any thread."""
        return len(self._replies) < self._places

    def put(self, reply: Mapping[str, Array]) -> None:
        """Hand over a reply; waits while there is no room.

        Raises:
            CallerGoneError: The reader has left.
        """
        with self._room:
            while not self.has_room and not self.abandoned:
                self._room.wait()
            if self.abandoned:
                raise CallerGoneError("the caller is gone")
            self._replies.append(reply)
        self._loop.call_soon_threadsafe(self._arrived.set)

    def push(self, replies: Iterable[Mapping[str, Array]]) -> None:
        """Hand over replies without a wait, also if there is no room; the reader sees them after `wake`."""
        with self._room:
            if not self.abandoned:
                self._replies.extend(replies)

    def finish(self, fault: DovetailError | None = None, *, wake: bool = True) -> None:
        """There are no more replies; the reader gets `fault` after those that are there. Only the first call counts.

        Args:
            fault: Why; None if nothing went wrong.
            wake: Have the reader see it; else `wake` does.
        """
        with self._room:
            if self._finished:
                return
            self._fault = fault
            self._finished = True
            ended = self._left
        if ended and self.on_end is not None:
            self.on_end()
        if wake and not self.abandoned:
            self._loop.call_soon_threadsafe(self._arrived.set)

    async def get(self) -> Mapping[str, Array] | None:
        """The next reply; None after the last.

        Raises:
            DovetailError: The one that `finish` was given.
        """
        while not self._replies:
            if self._finished:
                if self._replies:  # came between the two looks
                    break
                self._leave()
                if self._fault is not None:
                    raise self._fault
                return None
            await self._arrived.wait()
            self._arrived.clear()
        with self._room:
            had_room = self.has_room
            reply = self._replies.popleft()
            self._room.notify()
        if self._on_room is not None and not had_room and self.has_room:
            self._on_room()
        return reply

    def abandon(self) -> bool:
        """Read no more. True if the model had not finished."""
        finished = self._finished
        with self._room:
            self.abandoned = True
            self._replies.clear()
            self._room.notify()  # wakes the thread if it waits
        self._leave()
        return not finished

    def _leave(self) -> None:
        with self._room:
            ended = self._finished and not self._left
            self._left = True
        if ended and self.on_end is not None:
            self.on_end()

    @staticmethod
    def wake(buffers: list[ReplyBuffer]) -> None:
        """Have the readers of buffers of one loop look; from any thread, at the cost of one."""

        def wake_all() -> None:
            for buffer in buffers:
                buffer._arrived.set()

        if buffers:
            buffers[0]._loop.call_soon_threadsafe(wake_all)


async def only_reply(replies: AsyncGenerator[Mapping[str, Array], None], model: str) -> Mapping[str, Array]:
    """The reply of a request that has exactly one; what comes after a second is not read.

    Raises:
        UnsupportedError: It had none or several.
    """
    found = []
    async with aclosing(replies):
        async for reply in replies:
            found.append(reply)
            if len(found) > 1:
                break
    if len(found) != 1:
        raise UnsupportedError(
            f"model '{model}' is decoupled and gave {'no' if not found else 'more than one'} reply where"
            " one is needed; ask for its replies over a stream"
        )
    return found[0]
