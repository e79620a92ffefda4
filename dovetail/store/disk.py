# SPDX-License-Identifier: Apache-2.0
"""The durable tier in a directory: chunks below `cas/` and `trash/`, documents below `documents/`.

Names on disk are digests and checked identifiers, nothing else; that a file is there whole or not at all is `atomic`'s
promise. Blocking work runs in threads. What is inside a chunk or a document is not this file's business.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path

from dovetail.digest import DIGEST_PATTERN, check_digest, check_name
from dovetail.errors import InvalidInputError, OverLimitError
from dovetail.store.atomic import MIN_FREE_BYTES, AtomicFiles
from dovetail.store.base import StoredChunk
from dovetail.store.codec import MAX_CHUNK_BYTES, decode, encode
from dovetail.store.encoded import EncodedChunk, encoded_chunk

_NS_PER_MS = 1_000_000


class DiskChunkStore:
    """Chunks as files `cas/ab/<digest>`, compressed where it pays, read-only; what is to go is below `trash/` first.

    A rename is the one step between the two, so whoever asks for a chunk finds it in one of them, and a chunk that was
    touched keeps its new time wherever it is. Corrupt files are found by `VerifiedChunkStore`, which wraps this one;
    here only a file that cannot even be decoded raises IntegrityError.

    Attributes:
        touch_resolution_ms: See `CollectableChunkStore`; files keep their times to less than a millisecond.
    """

    touch_resolution_ms = 0

    def __init__(self, root: Path, *, min_free_bytes: int = MIN_FREE_BYTES) -> None:
        self._files = AtomicFiles(root / "cas", min_free_bytes, mode=0o440)
        self._trash = AtomicFiles(root / "trash", min_free_bytes, mode=0o440)
        self._aside = root / "quarantine"

    async def get(self, digest: str) -> bytes | None:
        """See `ChunkStore.get`; also IntegrityError if the file is damaged beyond decoding."""
        return await asyncio.to_thread(self._get, _chunk_name(digest))

    async def get_encoded(self, digest: str) -> EncodedChunk | None:
        """See `EncodedReader.get_encoded`."""
        stored = await asyncio.to_thread(self._read, _chunk_name(digest))
        return None if stored is None else encoded_chunk(stored)

    async def put(self, digest: str, data: bytes) -> None:
        """See `ChunkStore.put`."""
        if len(data) > MAX_CHUNK_BYTES:
            raise OverLimitError(f"chunk {digest[:12]} has {len(data)} bytes, at most {MAX_CHUNK_BYTES} are kept")
        await asyncio.to_thread(self._put, _chunk_name(digest), data)

    async def missing(self, digests: Iterable[str]) -> set[str]:
        """See `ChunkStore.missing`; touches what is here, and takes it out of the trash."""
        return await asyncio.to_thread(self._missing, [(digest, _chunk_name(digest)) for digest in digests])

    async def delete(self, digest: str) -> None:
        """See `CollectableChunkStore.delete`."""
        for files in (self._trash, self._files):
            await asyncio.to_thread(files.delete, _chunk_name(digest))

    async def quarantine(self, digest: str) -> None:
        """Move a wrong chunk to `quarantine/`, where no reader looks, for whoever wants to know what happened to it."""
        await asyncio.to_thread(self._quarantine, _chunk_name(digest))

    def chunks(self) -> AsyncIterator[Sequence[StoredChunk]]:
        """See `CollectableChunkStore.chunks`; a page is a folder."""
        return _pages(self._files, _touched_ns)

    def trashed(self) -> AsyncIterator[Sequence[StoredChunk]]:
        """See `CollectableChunkStore.trashed`."""
        return _pages(self._trash, _moved_ns)

    async def stat(self, digest: str) -> StoredChunk | None:
        """See `CollectableChunkStore.stat`."""
        found = await asyncio.to_thread(self._files.stat, _chunk_name(digest))
        return None if found is None else StoredChunk(digest, found.st_size, _touched_ns(found) // _NS_PER_MS)

    async def trash(self, digest: str, *, untouched_since_ms: int) -> bool:
        """See `CollectableChunkStore.trash`."""
        return await asyncio.to_thread(self._to_trash, _chunk_name(digest), untouched_since_ms)

    async def restore(self, digest: str) -> bool:
        """See `CollectableChunkStore.restore`."""
        return await asyncio.to_thread(self._restore, _chunk_name(digest))

    async def purge(self, digest: str, *, trashed_until_ms: int) -> bool:
        """See `CollectableChunkStore.purge`; who wanted the chunk since has renamed it out of the trash."""
        return await asyncio.to_thread(self._purge, _chunk_name(digest), trashed_until_ms)

    async def now_ms(self) -> int:
        """See `CollectableChunkStore.now_ms`."""
        return await asyncio.to_thread(self._files.now_ns) // _NS_PER_MS

    def _get(self, name: str) -> bytes | None:
        stored = self._read(name)
        return None if stored is None else decode(stored)

    def _read(self, name: str) -> bytes | None:
        for files in (self._files, self._trash, self._files):  # once more: it may come out of the trash between
            stored = files.read(name)
            if stored is not None:
                return stored
        return None

    def _put(self, name: str, data: bytes) -> None:
        self._files.write(name, encode(data))  # a copy in the trash stays: a collector may be about to put it back

    def _missing(self, chunks: Iterable[tuple[str, str]]) -> set[str]:
        return {digest for digest, name in chunks if not (self._files.touch(name) or self._restore(name, also=True))}

    def _restore(self, name: str, *, also: bool = False) -> bool:
        """Touched first, so that nobody sees it in its place with its old time; `also` counts one that is there."""
        if self._trash.touch(name) and self._trash.move(name, self._files):
            return True
        return also and self._files.touch(name)  # somebody else was faster

    def _quarantine(self, name: str) -> None:
        self._files.move(name, AtomicFiles(self._aside, 0, mode=0o440))
        self._trash.delete(name)

    def _to_trash(self, name: str, untouched_since_ms: int) -> bool:
        found = self._files.stat(name)
        if found is None:
            return self._trash.stat(name) is not None
        if _touched_ns(found) > untouched_since_ms * _NS_PER_MS or not self._files.move(name, self._trash):
            return False
        moved = self._trash.stat(name)
        if moved is not None and _touched_ns(moved) > untouched_since_ms * _NS_PER_MS:  # between the two looks
            self._trash.move(name, self._files)
            return False
        return moved is not None

    def _purge(self, name: str, trashed_until_ms: int) -> bool:
        found = self._trash.stat(name)
        if found is not None and _moved_ns(found) // _NS_PER_MS <= trashed_until_ms:
            self._trash.delete(name)
            found = None
        return found is None and self._files.stat(name) is None


class DiskDocumentStore:
    """Documents as files; each part of a key is a checked identifier, so no key leaves the directory."""

    def __init__(self, root: Path, *, min_free_bytes: int = MIN_FREE_BYTES) -> None:
        self._files = AtomicFiles(root / "documents", min_free_bytes, mode=0o640)

    async def get(self, key: str) -> bytes | None:
        """See `DocumentStore.get`."""
        return await asyncio.to_thread(self._files.read, document_name(key))

    async def put(self, key: str, data: bytes) -> None:
        """See `DocumentStore.put`. OverLimitError if the disk is full, UnavailableError if it cannot be written."""
        await asyncio.to_thread(self._files.write, document_name(key), data)

    async def delete(self, key: str) -> None:
        """See `DocumentStore.delete`."""
        await asyncio.to_thread(self._files.delete, document_name(key))

    async def keys(self, prefix: str) -> list[str]:
        """See `DocumentStore.keys`."""
        return await asyncio.to_thread(self._keys, prefix)

    def _keys(self, prefix: str) -> list[str]:
        folder = "/".join(document_name(prefix.rpartition("/")[0]).split("/")) if "/" in prefix else ""
        return sorted(key for key in self._files.names(folder) if key.startswith(prefix))


def _touched_ns(found: os.stat_result) -> int:
    return found.st_mtime_ns


def _moved_ns(found: os.stat_result) -> int:
    """When a file came into the trash: a rename changes this time of a file and leaves the other. Source: rename(2)."""
    return found.st_ctime_ns


async def _pages(files: AtomicFiles, time_ns: Callable[[os.stat_result], int]) -> AsyncIterator[Sequence[StoredChunk]]:
    for folder in await asyncio.to_thread(files.folders):
        found = await asyncio.to_thread(files.stats, folder)
        chunks = [
            StoredChunk(name, stat.st_size, time_ns(stat) // _NS_PER_MS)
            for name, stat in found
            if DIGEST_PATTERN.fullmatch(name) and name.startswith(folder)
        ]
        if chunks:
            yield chunks


def _chunk_name(digest: str) -> str:
    return f"{check_digest(digest)[:2]}/{digest}"  # 256 folders: a terabyte of chunks is 4,000 files in each


def document_name(key: str) -> str:
    """The key unchanged, once it is known to be parts that are digests or identifiers: none leaves its folder.

    Raises:
        InvalidInputError: It has another part, or more than 8.
    """
    for part in key.split("/"):
        if not DIGEST_PATTERN.fullmatch(part):
            check_name(part, f"part of document key {key[:200]!r}:")
    if key.count("/") > 7:
        raise InvalidInputError(f"document key {key[:200]!r} has too many parts: at most 8 are allowed")
    return key
