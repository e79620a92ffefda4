# SPDX-License-Identifier: Apache-2.0
"""The replies of one request on their way from an engine's thread to the event loop: few places, and both ends may go.

Made on the loop. `put` and `finish` belong to the thread, `get` and `abandon` to the loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Mapping

from dovetail.errors import CancelledError, DovetailError
from dovetail.tensor import Array

PLACES = 8
"""Replies that wait to be read before the model has to: enough for both to work at once, and little memory."""


class CallerGoneError(CancelledError):
    """Nobody reads the replies any more."""


class ReplyBuffer:
    """See the module.

    Args:
        places: Most replies that wait.

    Attributes:
        abandoned: The reader has left; for any thread.
    """

    def __init__(self, places: int = PLACES) -> None:
        self._loop = asyncio.get_running_loop()
        self._room = threading.Semaphore(places)
        self._replies: deque[Mapping[str, Array]] = deque()
        self._arrived = asyncio.Event()
        self._finished = False
        self._fault: DovetailError | None = None
        self.abandoned = False

    def put(self, reply: Mapping[str, Array]) -> None:
        """Hand over a reply; waits while there is no room.

        Raises:
            CallerGoneError: The reader has left.
        """
        self._room.acquire()
        if self.abandoned:
            self._room.release()
            raise CallerGoneError("the caller is gone")
        self._replies.append(reply)
        self._loop.call_soon_threadsafe(self._arrived.set)

    def finish(self, fault: DovetailError | None = None) -> None:
        """There are no more replies; the reader gets `fault` after those that are there."""
        self._fault = fault
        self._finished = True
        if not self.abandoned:
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
                if self._fault is not None:
                    raise self._fault
                return None
            await self._arrived.wait()
            self._arrived.clear()
        reply = self._replies.popleft()
        self._room.release()
        return reply

    def abandon(self) -> bool:
        """Read no more. True if the model had not finished."""
        finished = self._finished
        self.abandoned = True
        self._room.release()  # wakes the thread if it waits
        self._replies.clear()
        return not finished
