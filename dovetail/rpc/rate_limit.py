# SPDX-License-Identifier: Apache-2.0
"""Pacing of bytes: no faster than a rate, in the order in which it was asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from dovetail.clock import Clock, SystemClock

BURST_S = 0.1
"""Pause of the users that is not held against the rate, so that a wake-up that comes late costs nothing."""


class RateLimit:
    """Lets bytes pass at a rate. Belongs to one event loop; safe for concurrent tasks.

    Args:
        bytes_per_s: The rate; 0: none.
        clock: Monotonic time.
        sleep: Waits that many seconds; tests hand in one that returns at once.
    """

    def __init__(
        self,
        bytes_per_s: float,
        *,
        clock: Clock | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self._free_at_s = float("-inf")

    async def take(self, size_bytes: int) -> None:
        """Wait until that many bytes may pass; what was taken before must have passed by then."""
        if not self._bytes_per_s:
            return
        now_s = self._clock.monotonic_s()
        starts_s = max(self._free_at_s, now_s - BURST_S)
        self._free_at_s = starts_s + size_bytes / self._bytes_per_s
        if starts_s > now_s:
            await self._sleep(starts_s - now_s)
