# SPDX-License-Identifier: Apache-2.0
"""Pins: whoever stores for longer than the grace keeps what it stored until it can name it in a manifest.

Storing a chunk, and asking whether it is there, protects it for the grace by itself (`CollectableChunkStore`). A pin
says more: whatever was touched since the pin began stays until the pin ends, without a list of it. Its deadline is by
Redis' clock and renewed while its owner lives; when it began is told by the durable tier's clock, as touches are.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from compiler_svc.collection.renewing import renewed
from compiler_svc.keys import Keys
from compiler_svc.lua_scripts import index_script
from dovetail.digest import check_name
from dovetail.errors import DovetailError
from dovetail.store.redis_connection import RedisConnection

PIN_S = 120.0
"""How long a pin outlives an owner that died; renewed at a quarter of it."""

_log = logging.getLogger(__name__)


class Pins:
    """Holds pins; safe for concurrent calls of one event loop."""

    def __init__(
        self,
        redis: RedisConnection,
        now_ms: Callable[[], Awaitable[int]],
        *,
        keys: Keys | None = None,
        pin_s: float = PIN_S,
    ) -> None:
        """`now_ms` is the durable tier's clock (`CollectableChunkStore.now_ms`)."""
        self._redis = redis
        self._now_ms = now_ms
        self._keys = keys or Keys()
        self._pin_s = pin_s

    @asynccontextmanager
    async def held(self, owner: str) -> AsyncIterator[None]:
        """Pin what is stored and asked for while the block runs.

        Never fails: without Redis the block runs with the protection that touching gives, which is the grace, and
        nothing is collected for as long after Redis came back empty.

        Args:
            owner: Name of the pin, one for each block at a time.
        """
        check_name(owner, "owner of a pin")
        since_ms = await self._began(owner)
        try:
            async with renewed(lambda: self._set(owner, since_ms, self._pin_s), every_s=self._pin_s / 4, what=owner):
                yield
        finally:
            try:
                await self._set(owner, since_ms, 0.0)
            except DovetailError as exc:  # its deadline ends it
                _log.debug("pin.left owner=%s why=%r", owner, str(exc))

    async def _began(self, owner: str) -> int:
        since_ms = 0
        try:
            since_ms = await self._now_ms()
            await self._set(owner, since_ms, self._pin_s)
        except DovetailError as exc:
            _log.warning("pin.not_held owner=%s why=%r", owner, str(exc))
        return since_ms

    async def _set(self, owner: str, since_ms: int, seconds: float) -> None:
        if since_ms:
            await self._redis.run(index_script("pin"), self._keys.prefix, owner, since_ms, round(seconds * 1000))
