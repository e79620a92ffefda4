# SPDX-License-Identifier: Apache-2.0
"""Replies in Redis, for several nodes together. It is never waited for: slow, broken or gone, it is a miss.

After a failure it is left alone for a while, so that an outage costs one short wait now and then and not one for each
request. A question that is not answered in time goes on without whoever asked: after a fail-over the client library has
to find the new primary, which takes longer than a request waits and must not begin anew with each.

Whoever may write to that Redis can decide what is answered; it must be as trusted as the nodes themselves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from dovetail.clock import Clock, SystemClock
from dovetail.errors import DovetailError

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

PREFIX = "dovetail:reply:"
ANSWER_TIMEOUT_S = 0.25
"""Longest wait for an answer; a run that takes less is not worth asking for."""

PAUSE_S = 5.0
"""How long Redis is left alone after a failure."""

MAX_ENTRY_BYTES = 16 << 20
MAX_WRITES = 64
"""Most replies on their way at once; more are not written, because they would only pile up."""

KEEP_S = 24 * 3600.0
"""After that a reply is forgotten; it is never wrong, because its key names the artifact, but nobody may need it."""


class RedisCommands(Protocol):
    """What is used of `dovetail.store.redis_connection.RedisConnection`."""

    async def call(self, *parts: bytes | str | int | float) -> object:
        """Run one command."""
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...


class RedisStore:
    """Belongs to one event loop.

    Args:
        connection: To Redis; closed with the store.
        clock: Measures pauses.

    Attributes:
        failures: Times that Redis failed or was too slow so far.
    """

    def __init__(self, connection: RedisCommands, *, clock: Clock | None = None) -> None:
        self._connection = connection
        self._clock = clock or SystemClock()
        self._rests_until_s = float("-inf")
        self._writes: set[asyncio.Task[None]] = set()
        self._late: asyncio.Task[Any] | None = None
        self.failures = 0

    @staticmethod
    def connect(url: str) -> RedisStore:
        """A store at that address; nothing is sent yet.

        Raises:
            InvalidInputError: It is no address of a Redis.
        """
        from dovetail.store.redis_connection import connect  # a node without it need not load the client library

        return RedisStore(connect(url, setting="DOVETAIL_RESPONSE_CACHE_URL"))

    async def get(self, key: str) -> bytes | None:
        """What is kept under a key; None if nothing is, or if Redis cannot say so soon."""
        data = await self._asked(lambda: self._connection.call("GET", PREFIX + key))
        return data if isinstance(data, bytes) else None

    def put_later(self, key: str, data: bytes) -> None:
        """Have it kept, in the background; nothing happens if Redis is gone or too much is on its way already."""
        if len(data) > MAX_ENTRY_BYTES or len(self._writes) >= MAX_WRITES or self._rests():
            return
        write = asyncio.get_running_loop().create_task(self._put(key, data))
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)

    async def settled(self) -> None:
        """Wait until all that is to be kept was sent or given up."""
        await asyncio.gather(*self._writes)

    async def close(self) -> None:
        """Give up what is on its way and close the connection."""
        given_up = [*self._writes, *([] if self._late is None else [self._late])]
        for task in given_up:
            task.cancel()
        await asyncio.gather(*given_up, return_exceptions=True)
        await self._connection.aclose()

    async def _put(self, key: str, data: bytes) -> None:
        await self._asked(lambda: self._connection.call("SET", PREFIX + key, data, "PX", int(KEEP_S * 1000)))

    def _rests(self) -> bool:
        return self._clock.monotonic_s() < self._rests_until_s

    async def _asked(self, ask: Callable[[], Awaitable[_T]]) -> _T | None:
        if self._rests():
            return None
        asking = asyncio.get_running_loop().create_task(self._answer(ask))
        try:
            await asyncio.wait((asking,), timeout=ANSWER_TIMEOUT_S)
        except asyncio.CancelledError:
            asking.cancel()
            raise
        if asking.done():
            return asking.result()
        self._rest("it is too slow")
        if self._late is None or self._late.done():
            self._late = asking
        else:
            asking.cancel()
        return None

    async def _answer(self, ask: Callable[[], Awaitable[_T]]) -> _T | None:
        try:
            return await ask()
        except DovetailError as exc:
            self._rest(str(exc))
            return None

    def _rest(self, why: str) -> None:
        self.failures += 1
        self._rests_until_s = self._clock.monotonic_s() + PAUSE_S
        _log.warning("response_cache.redis_lost pause_s=%.0f why=%r", PAUSE_S, why)
