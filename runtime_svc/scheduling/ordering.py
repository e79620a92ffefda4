# SPDX-License-Identifier: Apache-2.0
"""Replies in the order of the requests, also where several instances finish in another order.

Source: Triton Inference Server, dynamic batcher, `preserve_ordering`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class ReplyOrder:
    """Lets whoever came first leave first. Belongs to one event loop."""

    def __init__(self) -> None:
        self._places: deque[Place] = deque()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[Place]:
        """The block's own place in the order: it ends only when all that began before have ended."""
        place = Place(self._places)
        self._places.append(place)
        try:
            yield place
        finally:
            try:
                await place.its_turn()
            finally:
                self._leave(place)

    def _leave(self, place: Place) -> None:
        place.gone = True
        while self._places and self._places[0].gone:
            self._places.popleft()
        if self._places:
            turn = self._places[0].turn
            if turn is not None and not turn.done():
                turn.set_result(None)


class Place:
    """One place in the order."""

    __slots__ = ("_all", "gone", "turn")

    def __init__(self, places: deque[Place]) -> None:
        self._all = places
        self.gone = False
        self.turn: asyncio.Future[None] | None = None

    async def its_turn(self) -> None:
        """Wait until all that began before have ended."""
        if self._all[0] is not self:
            self.turn = asyncio.get_running_loop().create_future()
            await self.turn
