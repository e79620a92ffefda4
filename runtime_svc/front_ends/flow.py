# SPDX-License-Identifier: Apache-2.0
"""Credit: how much one side of a stream may send before the other has used what came. Pure but for the waiting.

Each side of each stream begins with the same credit and gets more as the other side uses messages up. A message may go
while any credit is left, however large it is, so one that is larger than the credit is never stuck.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dovetail.errors import InvalidInputError
from runtime_svc.front_ends.frames import HEADER_BYTES

WINDOW_BYTES = 256 << 10
"""Credit at the beginning: hundreds of small messages, and little memory for a thousand streams."""


def cost_of(message: bytes) -> int:
    """What a message takes of the credit; empty ones are not free."""
    return len(message) + HEADER_BYTES


class SendCredit:
    """The sender's side of one direction. One waiter at a time."""

    def __init__(self) -> None:
        self._left = float(WINDOW_BYTES)
        self._waiter: asyncio.Future[None] | None = None

    async def spend(self, message: bytes) -> None:
        """Wait until the message may be sent, and count it."""
        while self._left <= 0:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._left -= cost_of(message)

    def refill(self, size_bytes: float) -> None:
        """The other side has used up that much."""
        self._left += size_bytes
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class ReceiveCredit:
    """The receiver's side.

    Args:
        give: Sends the other side credit.
    """

    def __init__(self, give: Callable[[float], None]) -> None:
        self._give = give
        self._granted = WINDOW_BYTES
        self._used = 0

    def arrive(self, message: bytes) -> None:
        """A message has come.

        Raises:
            InvalidInputError: It was sent without credit.
        """
        if self._granted <= 0:
            raise InvalidInputError("a message was sent without credit")
        self._granted -= cost_of(message)

    def use(self, message: bytes) -> None:
        """A message that came is not held here any more."""
        self._used += cost_of(message)
        if self._used >= WINDOW_BYTES // 2:  # not for each message: frames cost time
            given, self._used = self._used, 0
            self._granted += given
            self._give(given)
