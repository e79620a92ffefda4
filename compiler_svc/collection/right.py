# SPDX-License-Identifier: Apache-2.0
"""The right to collect: one service of all at a time, by Redis' clock, and what Redis says that a collector must know.

Two collectors would do no harm, since each step looks again (`CollectableChunkStore`); one is cheaper, and reports of
two at once could not be understood.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from compiler_svc.collection.renewing import renewed
from compiler_svc.keys import Keys
from compiler_svc.lua_scripts import index_script
from dovetail.errors import PreconditionError
from dovetail.settings import host_identifier
from dovetail.store.redis_connection import RedisConnection

RIGHT_S = 60.0
"""How long the right outlives a collector that died; renewed at a quarter of it."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What Redis said when a collection asked.

    Attributes:
        granted: True if this collector has the right.
        holder: Who had it before.
        now_ms: Redis' clock.
        index_age_ms: Time since the index was filled from empty; -1 if it is empty.
        pinned_since_ms: What was touched since is pinned, by the durable tier's clock; -1: nothing is.
    """

    granted: bool
    holder: str
    now_ms: int
    index_age_ms: int
    pinned_since_ms: int


class CollectionRight:
    """Takes and keeps the right; one for each process."""

    def __init__(self, redis: RedisConnection, *, keys: Keys | None = None, right_s: float = RIGHT_S) -> None:
        self._redis = redis
        self._keys = keys or Keys()
        self._right_s = right_s
        self._owner = f"{host_identifier()}-{secrets.token_hex(4)}"

    async def look(self) -> Ground:
        """The ground without taking the right. Raises UnavailableError."""
        return await self._ask("", 0.0)

    async def due(self, period_s: float) -> bool:
        """True if nobody collects and the last collection ended so long ago. Raises UnavailableError."""
        due = await self._redis.run(index_script("collection_due"), self._keys.prefix, round(period_s * 1000))
        return bool(due)

    @asynccontextmanager
    async def held(self) -> AsyncIterator[Ground]:
        """Have the right while the block runs.

        Raises:
            PreconditionError: Another collection is running.
            UnavailableError: Redis does not answer.
        """
        ground = await self._ask(self._owner, self._right_s)
        if not ground.granted:
            raise PreconditionError(f"{ground.holder} is collecting already; try again when it has ended")
        try:
            async with renewed(self.keep, every_s=self._right_s / 4, what="collection"):
                yield ground
        finally:
            await self._ask(self._owner, 0.0)

    async def keep(self) -> None:
        """Make sure that the right is still held.

        Raises:
            PreconditionError: It was lost; another collection runs by now.
            UnavailableError: Redis does not answer.
        """
        ground = await self._ask(self._owner, self._right_s)
        if not ground.granted:
            raise PreconditionError(f"this collection was overtaken by one of {ground.holder}; it ends here")

    async def _ask(self, owner: str, seconds: float) -> Ground:
        granted, holder, *numbers = await self._redis.run(
            index_script("collector"), self._keys.prefix, owner, round(seconds * 1000)
        )
        return Ground(bool(granted), holder.decode(), *(int(number) for number in numbers))
