# SPDX-License-Identifier: Apache-2.0
"""The chunks of a site: on this disk within a quota, and from upstream what is not here.

The disk is only a cache: what was not asked for longest goes first, and a disk that is full or damaged costs a read
from upstream, never an error. Every chunk is checked when it is read.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

from cache_node.upstream import UpstreamChunks
from dovetail.clock import Clock, SystemClock
from dovetail.errors import OverLimitError, UnavailableError
from dovetail.store.disk import DiskChunkStore
from dovetail.store.verified import VerifiedChunkStore

_log = logging.getLogger(__name__)

TOUCH_S = 3600.0
"""How often a read is noted on disk, so that the order survives a restart: to the hour is good enough."""

ROOM_CHUNKS = 64
"""Chunks that go when the disk turns out to be full."""


class SiteChunkStore:
    """A read-through chunk store. Belongs to one event loop; call `load` before use.

    Args:
        root: Directory that only this process writes.
        upstream: Where the rest is.
        quota_bytes: Most that chunks may take on disk, as stored; 0: what the disk has.
        clock: Monotonic time.

    Attributes:
        hits: Chunks read from disk since the start.
        misses: Chunks that had to come from upstream.
        evicted: Chunks that made room for others.
        stored_bytes: What is on disk now.
    """

    def __init__(
        self, root: Path, upstream: UpstreamChunks, *, quota_bytes: int = 0, clock: Clock | None = None
    ) -> None:
        self.hits = 0
        self.misses = 0
        self.evicted = 0
        self.stored_bytes = 0
        self._disk = DiskChunkStore(root)
        self._checked = VerifiedChunkStore(self._disk, name="site")
        self._upstream = upstream
        self._quota_bytes = quota_bytes
        self._clock = clock or SystemClock()
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._touched_s: dict[str, float] = {}

    async def load(self) -> None:
        """Find what is on disk, in the order in which it was asked for. Raises UnavailableError."""
        found = [chunk async for page in self._disk.chunks() for chunk in page]
        for chunk in sorted(found, key=lambda chunk: chunk.touched_ms):
            self._note(chunk.digest, chunk.size_bytes)
        await self._evict_over_quota()
        _log.info("site.loaded chunks=%d bytes=%d", len(self._sizes), self.stored_bytes)

    async def get(self, digest: str) -> bytes | None:
        """See `ChunkStore.get`; only upstream's errors reach the caller."""
        data = await self._get_here(digest)
        if data is not None:
            self.hits += 1
            return data
        data = await self._upstream.get(digest)
        if data is not None:
            self.misses += 1
            await self._keep(digest, data)
        return data

    async def put(self, digest: str, data: bytes) -> None:
        """See `ChunkStore.put`; what does not fit is not kept."""
        await self._keep(digest, data)

    async def missing(self, digests: Iterable[str]) -> set[str]:
        """See `ChunkStore.missing`: what is not on this disk."""
        return {digest for digest in digests if digest not in self._sizes}

    async def _get_here(self, digest: str) -> bytes | None:
        if digest not in self._sizes:
            return None
        try:
            data = await self._checked.get(digest)
            if data is None:  # damaged, and deleted by the check
                self._forget(digest)
                return None
            await self._touch(digest)
        except UnavailableError as exc:
            _log.error("site.disk_failed digest=%s why=%r", digest, str(exc))
            return None
        return data

    async def _touch(self, digest: str) -> None:
        if digest in self._sizes:
            self._sizes.move_to_end(digest)
        now_s = self._clock.monotonic_s()
        if now_s - self._touched_s.get(digest, float("-inf")) >= TOUCH_S:
            self._touched_s[digest] = now_s
            await self._disk.missing([digest])

    async def _keep(self, digest: str, data: bytes) -> None:
        try:
            try:
                await self._disk.put(digest, data)
            except OverLimitError:
                await self._evict(ROOM_CHUNKS)
                await self._disk.put(digest, data)
            stored = await self._disk.stat(digest)
        except (OverLimitError, UnavailableError) as exc:
            _log.warning("site.not_kept digest=%s why=%r", digest, str(exc))
            return
        if stored is not None:
            self._note(digest, stored.size_bytes)
        await self._evict_over_quota()

    async def _evict_over_quota(self) -> None:
        while self._quota_bytes and self.stored_bytes > self._quota_bytes:
            await self._evict(1)

    async def _evict(self, count: int) -> None:
        for digest in [digest for digest, _ in zip(self._sizes, range(count), strict=False)]:
            self._forget(digest)
            self.evicted += 1
            await self._disk.delete(digest)

    def _note(self, digest: str, size_bytes: int) -> None:
        self._forget(digest)
        self._sizes[digest] = size_bytes
        self.stored_bytes += size_bytes

    def _forget(self, digest: str) -> None:
        self.stored_bytes -= self._sizes.pop(digest, 0)
        self._touched_s.pop(digest, None)
