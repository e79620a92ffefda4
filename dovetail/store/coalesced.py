# SPDX-License-Identifier: Apache-2.0
"""A wrapper that reads a chunk once for all who want it at about the same time.

A new artifact is wanted by a whole fleet within seconds, so the tier below would be read once for each node. Here those
who ask while a read runs wait for that one, and what was read stays for those who come a little later, within a bound.
How many reads run at once is bounded as well, so that a thousand readers of a thousand chunks hold a few in memory.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable

from dovetail.store.base import ChunkStore
from dovetail.store.encoded import EncodedChunk, plain_form, read_encoded
from dovetail.store.verified import Deletable

KEEP_BYTES = 64 << 20
"""Enough for the chunks that some dozen readers of different artifacts are at, and for those a fleet is at."""

READS = 16
"""Reads of the store below at once: hides its latency, holds 16 MiB."""


class CoalescedChunkStore:
    """One read for all who want a chunk. Belongs to one event loop; safe for concurrent tasks.

    Attributes:
        reads: How often the store below was read since the start.
        shared: How often a read or its result served one more.
        kept_bytes: What is kept in memory now.
    """

    def __init__(self, inner: ChunkStore, *, keep_bytes: int = KEEP_BYTES, reads: int = READS) -> None:
        self.keep_bytes = keep_bytes
        self.reads = 0
        self.shared = 0
        self.kept_bytes = 0
        self._inner = inner
        self._kept: OrderedDict[str, EncodedChunk] = OrderedDict()
        self._running: dict[str, asyncio.Task[EncodedChunk | None]] = {}
        self._turns = asyncio.Semaphore(reads)

    async def get(self, digest: str) -> bytes | None:
        """See `ChunkStore.get`."""
        chunk = await self.get_encoded(digest)
        return None if chunk is None else (await plain_form(chunk)).data

    async def get_encoded(self, digest: str) -> EncodedChunk | None:
        """See `EncodedReader.get_encoded`; whoever is cancelled leaves the read to the others."""
        kept = self._kept.get(digest)
        if kept is not None:
            self.shared += 1
            self._kept.move_to_end(digest)
            return kept
        return await asyncio.shield(self._reading(digest))

    def prefetch(self, digests: Iterable[str]) -> None:
        """Begin to read chunks that will be asked for soon; a failure is told to who asks then."""
        for digest in digests:
            if digest not in self._kept and digest not in self._running:
                self._reading(digest)

    async def put(self, digest: str, data: bytes) -> None:
        """See `ChunkStore.put`."""
        await self._inner.put(digest, data)

    async def missing(self, digests: Iterable[str]) -> set[str]:
        """See `ChunkStore.missing`."""
        return await self._inner.missing(digests)

    async def delete(self, digest: str) -> None:
        """Remove a chunk, if the inner store can."""
        self._forget(digest)
        if isinstance(self._inner, Deletable):
            await self._inner.delete(digest)

    async def aclose(self) -> None:
        """Stop the reads that run."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _reading(self, digest: str) -> asyncio.Task[EncodedChunk | None]:
        task = self._running.get(digest)
        if task is not None:
            self.shared += 1
            return task
        task = self._running[digest] = asyncio.create_task(self._read(digest))
        task.add_done_callback(_look)
        return task

    async def _read(self, digest: str) -> EncodedChunk | None:
        try:
            async with self._turns:
                self.reads += 1
                chunk = await read_encoded(self._inner, digest)
        finally:
            del self._running[digest]
        if chunk is not None:
            self._keep(digest, chunk)
        return chunk

    def _keep(self, digest: str, chunk: EncodedChunk) -> None:
        self._forget(digest)
        self._kept[digest] = chunk
        self.kept_bytes += len(chunk.data)
        while self.kept_bytes > self.keep_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.kept_bytes -= len(oldest.data)

    def _forget(self, digest: str) -> None:
        known = self._kept.pop(digest, None)
        if known is not None:
            self.kept_bytes -= len(known.data)


def _look(task: asyncio.Task[EncodedChunk | None]) -> None:
    """Read the outcome, so that a read which nobody waited for to its end is not reported as forgotten."""
    if not task.cancelled():
        task.exception()
