# SPDX-License-Identifier: Apache-2.0
"""The durable tier's chunks in an S3-compatible store, below `cas/`.

Such a store cannot rename or touch, so what happened to a chunk is said by empty objects beside it: `touched/` (asked
for), `trash/` (condemned), `purging/` (being removed). All have the service's times, exact to a second. The rule that
makes collecting safe without a lock: who wants a chunk first writes (the chunk, or `touched/`) and then looks for
`purging/`; who removes one first writes `purging/` and then looks whether it was touched. One of them sees the other.

Source: Amazon S3 user guide, "Amazon S3 data consistency model": what was written is what every later read and list
finds; "Conditional requests": If-None-Match lets one writer win.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence

from dovetail.digest import DIGEST_PATTERN, check_digest
from dovetail.errors import OverLimitError, UnavailableError
from dovetail.store.base import StoredChunk
from dovetail.store.codec import MAX_CHUNK_BYTES, decode, encode
from dovetail.store.encoded import EncodedChunk, encoded_chunk
from dovetail.store.object_bucket import ObjectBucket, ObjectEntry, all_of

TOUCH_AFTER_S = 3600.0
"""A chunk that was touched in the last hour is not touched again: a request each time would cost more than it tells."""

KNOWN_FOR_S = 30.0
"""How long this process believes that a chunk is there: the same models are looked up again every few seconds."""

PURGE_LIMIT_S = 60.0
"""A removal that has not come to its last step by then is given up, so a `purging/` of twice that age means nothing."""

_MAX_KNOWN = 100_000  # digests; some 10 MiB
_BATCH = 512  # questions under way at once, of which the bucket sends a few
_CLOCK_KEPT_S = 600.0
_WAIT_S = 20.0
_POLL_S = 0.2
_SECOND_MS = 1000


class ObjectChunkStore:
    """Chunks as objects `cas/ab/<digest>`, encoded as on disk. Safe for several processes on one bucket.

    Attributes:
        touch_resolution_ms: See `CollectableChunkStore`.
    """

    def __init__(
        self, bucket: ObjectBucket, *, touch_after_s: float = TOUCH_AFTER_S, known_for_s: float = KNOWN_FOR_S
    ) -> None:
        self._bucket = bucket
        self._touch_after_ms = int(touch_after_s * 1000)
        self._known_for_s = known_for_s
        self._known_until_s: dict[str, float] = {}
        self._clock = (float("-inf"), 0)  # ours (monotonic) when the service said its own
        self.touch_resolution_ms = self._touch_after_ms + int(known_for_s * 1000) + 2 * _SECOND_MS

    async def get(self, digest: str) -> bytes | None:
        """See `ChunkStore.get`; also IntegrityError if the object is damaged beyond decoding."""
        stored = await self._read(digest)
        return None if stored is None else await asyncio.to_thread(decode, stored)

    async def get_encoded(self, digest: str) -> EncodedChunk | None:
        """See `EncodedReader.get_encoded`."""
        stored = await self._read(digest)
        return None if stored is None else encoded_chunk(stored)

    async def put(self, digest: str, data: bytes) -> None:
        """See `ChunkStore.put`."""
        if len(data) > MAX_CHUNK_BYTES:
            raise OverLimitError(f"chunk {digest[:12]} has {len(data)} bytes, at most {MAX_CHUNK_BYTES} are kept")
        name = _name("cas", digest)
        stored = await asyncio.to_thread(encode, data)
        await self._bucket.put(name, stored)
        if not await self._stayed(digest):
            await self._bucket.put(name, stored)
        self._know(digest)

    async def missing(self, digests: Iterable[str]) -> set[str]:
        """See `ChunkStore.missing`; touches what is here, which takes it out of the trash."""
        now_s = time.monotonic()
        wanted = {check_digest(digest) for digest in digests}
        unknown = [digest for digest in sorted(wanted) if self._known_until_s.get(digest, 0.0) <= now_s]
        absent: set[str] = set()
        for start in range(0, len(unknown), _BATCH):
            batch = unknown[start : start + _BATCH]
            now_ms = await self._rough_now_ms()
            there = await all_of(*(self._touch(digest, now_ms) for digest in batch))
            absent |= {digest for digest, found in zip(batch, there, strict=True) if not found}
        return absent

    async def delete(self, digest: str) -> None:
        """See `CollectableChunkStore.delete`."""
        self._known_until_s.pop(digest, None)
        await self._bucket.delete(*(_name(folder, digest) for folder in ("cas", "touched", "trash")))

    async def chunks(self) -> AsyncIterator[Sequence[StoredChunk]]:
        """See `CollectableChunkStore.chunks`; a page is what shares the first two digits."""
        async for found in self._pages("cas"):
            if listed := [chunk for chunk, trashed_ms in found if trashed_ms is None]:
                yield listed

    async def trashed(self) -> AsyncIterator[Sequence[StoredChunk]]:
        """See `CollectableChunkStore.trashed`."""
        async for found in self._pages("trash"):
            listed = [StoredChunk(chunk.digest, chunk.size_bytes, ms) for chunk, ms in found if ms is not None]
            if listed:
                yield listed

    async def stat(self, digest: str) -> StoredChunk | None:
        """See `CollectableChunkStore.stat`."""
        chunk, trashed_ms = await self._look(digest)
        return chunk if trashed_ms is None else None

    async def trash(self, digest: str, *, untouched_since_ms: int) -> bool:
        """See `CollectableChunkStore.trash`; a chunk stays unless its last second is over."""
        chunk, trashed_ms = await self._look(digest)
        if chunk is None or trashed_ms is not None:
            return trashed_ms is not None
        if chunk.touched_ms > untouched_since_ms:
            return False
        await self._bucket.put(_name("trash", digest), b"")
        self._known_until_s.pop(digest, None)
        chunk, trashed_ms = await self._look(digest)
        if chunk is not None and chunk.touched_ms > untouched_since_ms:  # between the two looks
            await self._bucket.delete(_name("trash", digest))
            return False
        return trashed_ms is not None

    async def restore(self, digest: str) -> bool:
        """See `CollectableChunkStore.restore`."""
        chunk, trashed_ms = await self._look(digest)
        if chunk is None or trashed_ms is None or not await self._touch(digest, None):
            return False
        await self._bucket.delete(_name("trash", digest))
        return True

    async def purge(self, digest: str, *, trashed_until_ms: int) -> bool:
        """See `CollectableChunkStore.purge`."""
        chunk, trashed_ms = await self._look(digest)
        if chunk is None or trashed_ms is None or trashed_ms > trashed_until_ms:
            return chunk is None
        started_s = time.monotonic()
        if not await self._bucket.create(_name("purging", digest), b""):
            if not await self._is_stale_purge(digest):
                return False  # another collector is at it
            await self._bucket.put(_name("purging", digest), b"")  # one that died; its time begins anew
        gone = False
        if (await self._look(digest))[1] is not None and time.monotonic() - started_s < PURGE_LIMIT_S:
            await self.delete(digest)
            gone = True
        await self._bucket.delete(_name("purging", digest))
        return gone

    async def now_ms(self) -> int:
        """See `CollectableChunkStore.now_ms`; exact to a second."""
        await self._bucket.put("clock", b"")
        entry = await self._bucket.head("clock")
        if entry is None:
            raise UnavailableError("the object store lost what it was just given; is something deleting in its bucket?")
        self._clock = (time.monotonic(), entry.modified_ms)
        return entry.modified_ms

    async def _read(self, digest: str) -> bytes | None:
        stored = await self._bucket.get(_name("cas", digest), limit_bytes=MAX_CHUNK_BYTES + 1)
        if stored is None:
            self._known_until_s.pop(digest, None)
        return stored

    async def _look(self, digest: str) -> tuple[StoredChunk | None, int | None]:
        """The chunk, and since when it is in the trash if it is: touching it later than that took it out."""
        return _state(
            digest, *await all_of(*(self._bucket.head(_name(folder, digest)) for folder in ("cas", "touched", "trash")))
        )

    async def _pages(self, folder: str) -> AsyncIterator[list[tuple[StoredChunk, int | None]]]:
        for start in await self._bucket.folders(folder):
            touched, trash = await all_of(self._entries("touched", start), self._entries("trash", start))
            found = [
                _state(digest, entry, touched.get(digest), trash.get(digest))
                for digest, entry in (await self._entries("cas", start)).items()
            ]
            yield [(chunk, trashed_ms) for chunk, trashed_ms in found if chunk is not None]

    async def _entries(self, folder: str, start: str) -> dict[str, ObjectEntry]:
        found = {}
        async for page in self._bucket.list(f"{folder}/{start}"):
            for entry in page:
                digest = entry.name.rpartition("/")[2]
                if DIGEST_PATTERN.fullmatch(digest):
                    found[digest] = entry
        return found

    async def _touch(self, digest: str, now_ms: int | None) -> bool:
        """Whether the chunk is there, and will be for a grace. `now_ms` spares it if it was touched lately."""
        chunk = await self._bucket.head(_name("cas", digest))
        if chunk is None:
            return False
        age_ms = self._touch_after_ms if now_ms is None else now_ms - chunk.modified_ms
        if now_ms is not None and age_ms >= self._touch_after_ms:
            touched = await self._bucket.head(_name("touched", digest))
            age_ms = min(age_ms, now_ms - touched.modified_ms if touched else age_ms)
        if age_ms >= self._touch_after_ms:
            await self._bucket.put(_name("touched", digest), b"")
            age_ms = 0
        # A removal that did not see the touch is long over when the touch is older than any removal takes.
        if age_ms < 2 * PURGE_LIMIT_S * 1000 and not await self._stayed(digest):
            return False
        self._know(digest)
        return True

    async def _stayed(self, digest: str) -> bool:
        """Whether a chunk that was just written or touched is there, with no removal under way that did not see it."""
        deadline_s = time.monotonic() + _WAIT_S
        while await self._bucket.head(_name("purging", digest)) is not None:
            if await self._is_stale_purge(digest):
                await self._bucket.delete(_name("purging", digest))
            elif time.monotonic() > deadline_s:
                raise UnavailableError(f"chunk {digest[:12]}… is just being removed; try again in a minute")
            await asyncio.sleep(_POLL_S)
        return await self._bucket.head(_name("cas", digest)) is not None

    async def _is_stale_purge(self, digest: str) -> bool:
        entry = await self._bucket.head(_name("purging", digest))
        return entry is not None and await self.now_ms() - entry.modified_ms > 2 * PURGE_LIMIT_S * 1000

    async def _rough_now_ms(self) -> int:
        """The service's time, asked for now and then: ours may be wrong by hours."""
        asked_s, then_ms = self._clock
        passed_s = time.monotonic() - asked_s
        return await self.now_ms() if passed_s > _CLOCK_KEPT_S else then_ms + int(passed_s * 1000)

    def _know(self, digest: str) -> None:
        if len(self._known_until_s) >= _MAX_KNOWN:
            self._known_until_s.clear()
        self._known_until_s[digest] = time.monotonic() + self._known_for_s


def _state(
    digest: str, chunk: ObjectEntry | None, touched: ObjectEntry | None, trash: ObjectEntry | None
) -> tuple[StoredChunk | None, int | None]:
    if chunk is None:
        return None, None
    touched_ms = max(chunk.modified_ms, touched.modified_ms if touched else 0)
    trashed_ms = trash.modified_ms if trash is not None and trash.modified_ms > touched_ms else None
    return StoredChunk(digest, chunk.size_bytes, touched_ms), trashed_ms


def _name(folder: str, digest: str) -> str:
    return f"{folder}/{check_digest(digest)[:2]}/{digest}"
