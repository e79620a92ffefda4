# SPDX-License-Identifier: Apache-2.0
"""Bytes that many tasks may hold together: a hard bound, handed out in the order in which it was asked for."""

from __future__ import annotations

import asyncio
from collections import deque


class ByteBudget:
    """A bound on memory. Belongs to one event loop; safe for concurrent tasks.

    Attributes:
        limit_bytes: The bound.
        held_bytes: Taken and not given back; never over the bound.
        peak_bytes: The most that was held at once.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self.peak_bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def try_take(self, size_bytes: int) -> bool:
        """Take bytes if they are free and nobody waits for any; returns whether they were taken."""
        if self._waiting or self.held_bytes + size_bytes > self.limit_bytes:
            return False
        self._hold(size_bytes)
        return True

    async def take(self, size_bytes: int) -> None:
        """Take bytes, after all who asked before. More than the bound would never be free, so ask for less."""
        if self.try_take(size_bytes):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (size_bytes, turn)
        self._waiting.append(place)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(size_bytes)  # they came at the moment when nobody wanted them any more
            else:
                self._waiting.remove(place)
                self._admit()  # whoever stood behind may fit now
            raise

    def give_back(self, size_bytes: int) -> None:
        """Give back what was taken."""
        self.held_bytes -= size_bytes
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self.held_bytes + self._waiting[0][0] <= self.limit_bytes:
            size_bytes, turn = self._waiting.popleft()
            if not turn.cancelled():
                self._hold(size_bytes)
                turn.set_result(None)

    def _hold(self, size_bytes: int) -> None:
        self.held_bytes += size_bytes
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)
