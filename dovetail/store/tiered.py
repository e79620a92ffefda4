# SPDX-License-Identifier: Apache-2.0
"""A fast tier that may forget, over a slow one that must not.

The durable tier decides what exists; the hot one only makes reads faster, so its failures are never the caller's.
While the hot tier does not answer it is left alone for a few seconds, else every chunk would wait for its time-out.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from dovetail.clock import Clock, SystemClock
from dovetail.errors import DovetailError, IntegrityError, OverLimitError, UnavailableError
from dovetail.store.base import ChunkStore
from dovetail.store.encoded import EncodedChunk, plain_form, read_encoded
from dovetail.store.verified import Deletable

PAUSE_S = 5.0
"""How long a hot tier that failed is not asked again."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_TIER_FAILURES = (UnavailableError, OverLimitError, IntegrityError)


class TieredChunkStore:
    """Reads hot, then durable (and refills hot); writes durable, then hot. Wrap each tier in `VerifiedChunkStore`."""

    def __init__(self, hot: ChunkStore, durable: ChunkStore, *, clock: Clock | None = None) -> None:
        self._hot = hot
        self._durable = durable
        self._clock = clock or SystemClock()
        self._paused_until_s = float("-inf")
        self._down = False

    async def get(self, digest: str) -> bytes | None:
        """See `ChunkStore.get`; only the durable tier's errors reach the caller."""
        data = await self._get_hot(digest)
        if data is not None:
            return data
        data = await self._durable.get(digest)
        if data is not None:
            await self._put_hot(digest, data)
        return data

    async def get_encoded(self, digest: str) -> EncodedChunk | None:
        """See `EncodedReader.get_encoded`; as `get`."""
        chunk = await self._ask_hot(lambda: read_encoded(self._hot, digest))
        if chunk is None:
            chunk = await read_encoded(self._durable, digest)
            if chunk is not None:
                await self._put_hot(digest, (await plain_form(chunk)).data)
        return chunk

    async def put(self, digest: str, data: bytes) -> None:
        """See `ChunkStore.put`; durable when it returns."""
        await self._durable.put(digest, data)
        await self._put_hot(digest, data)

    async def missing(self, digests: Iterable[str]) -> set[str]:
        """See `ChunkStore.missing`; what only the hot tier still has is first written back to the durable one."""
        wanted = list(digests)
        absent = await self._durable.missing(wanted)
        for digest in sorted(absent - await self._missing_hot(absent)):
            data = await self._get_hot(digest)
            if data is not None:
                await self._durable.put(digest, data)
                absent.discard(digest)
                _log.warning("chunk.healed digest=%s from=hot to=durable", digest)
        return absent

    async def delete(self, digest: str) -> None:
        """Remove a chunk from both tiers, where they can; the hot one first, so that it cannot bring it back."""
        for store in (self._hot, self._durable):
            if isinstance(store, Deletable):
                await store.delete(digest)

    async def _get_hot(self, digest: str) -> bytes | None:
        return await self._ask_hot(lambda: self._hot.get(digest))

    async def _ask_hot(self, read: Callable[[], Awaitable[_T | None]]) -> _T | None:
        if not self._hot_answers():
            return None
        try:
            found = await read()
        except _TIER_FAILURES as exc:
            self._hot_failed(exc)
            return None
        self._hot_worked()
        return found

    async def _missing_hot(self, digests: set[str]) -> set[str]:
        if not digests or not self._hot_answers():
            return digests
        try:
            return await self._hot.missing(digests)
        except _TIER_FAILURES as exc:
            self._hot_failed(exc)
            return digests

    async def _put_hot(self, digest: str, data: bytes) -> None:
        if not self._hot_answers():
            return
        try:
            await self._hot.put(digest, data)
        except _TIER_FAILURES as exc:
            self._hot_failed(exc)

    def _hot_answers(self) -> bool:
        return self._clock.monotonic_s() >= self._paused_until_s

    def _hot_failed(self, error: DovetailError) -> None:
        if isinstance(error, UnavailableError):
            self._paused_until_s = self._clock.monotonic_s() + PAUSE_S
        if not self._down:
            _log.warning("store.hot_down served_by=durable why=%r", str(error))
        self._down = True

    def _hot_worked(self) -> None:
        if self._down:
            _log.info("store.hot_back")
        self._down = False
