# SPDX-License-Identifier: Apache-2.0
"""As much of a Redis as the response cache needs, from memory, which can fail or hang."""

from __future__ import annotations

import asyncio
from typing import Any


class FakeReplyRedis:
    """Keeps what it is told to.

    Attributes:
        kept: Key -> value.
        failure: Raised instead of an answer, if any.
        held: It never answers.
        calls: Commands so far.
        unanswered: Those that wait for their answer.
        given_up: Those whose answer was not waited for.
    """

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.failure: Exception | None = None
        self.held = False
        self.calls = self.unanswered = self.given_up = 0

    async def call(self, *parts: Any) -> object:
        self.calls += 1
        if self.failure is not None:
            raise self.failure
        if self.held:
            await self._never()
        if parts[0] == "SET":
            self.kept[parts[1]] = parts[2]
            return b"OK"
        return self.kept.get(parts[1])

    async def aclose(self) -> None:
        """Nothing to do."""

    async def _never(self) -> None:
        self.unanswered += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.unanswered -= 1
            self.given_up += 1
