# SPDX-License-Identifier: Apache-2.0
"""How long to wait before trying again: exponential with full jitter, so that a fleet does not come back in step.

Source: the "full jitter" form, sleep = random(0, min(cap, base * 2^attempt)), of the AWS Architecture Blog's
"Exponential Backoff And Jitter".
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

Sleep = Callable[[float], Awaitable[None]]


class Backoff:
    """Pauses that grow until something works; one user at a time.

    Args:
        base_s: Upper bound of the first pause.
        cap_s: Upper bound of any pause.
        sleep: Waits that many seconds; tests hand in one that returns at once.
    """

    def __init__(self, *, base_s: float = 0.2, cap_s: float = 15.0, sleep: Sleep = asyncio.sleep) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self._sleep = sleep
        self.attempts = 0

    def reset(self) -> None:
        """Something worked: the next pause is short again."""
        self.attempts = 0

    async def pause(self) -> None:
        """Wait; each call without a `reset` between waits longer on average."""
        await self.rest(self.next_s())

    async def rest(self, seconds: float) -> None:
        """Wait that long; counts as no attempt."""
        await self._sleep(seconds)

    async def pause_until(self, event: asyncio.Event) -> None:
        """`pause`, but no longer than until the event is set."""
        waits = [asyncio.ensure_future(wait) for wait in (self.pause(), event.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    def next_s(self) -> float:
        """How long the next pause is, for those who do something else meanwhile; counts as an attempt."""
        bound_s = min(self._cap_s, self._base_s * 2 ** min(self.attempts, 30))
        self.attempts += 1
        return random.uniform(0, bound_s)  # noqa: S311 - spreads load, keeps no secret
