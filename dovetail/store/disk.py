# SPDX-License-Identifier: Apache-2.0
"""The durable tier in a directory: chunks below `cas/`, documents below `documents/`.

Names on disk are digests and checked identifiers, nothing else; that a file is there whole or not at all is `atomic`'s
promise. Blocking work runs in threads. What is inside a chunk or a document is not this file's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from dovetail.digest import DIGEST_PATTERN, check_digest, check_name
from dovetail.errors import InvalidInputError, OverLimitError
from dovetail.store.atomic import MIN_FREE_BYTES, AtomicFiles
from dovetail.store.codec import MAX_CHUNK_BYTES, decode, encode


class DiskChunkStore:
    """Chunks as files `cas/ab/<digest>`, compressed where it pays, read-only.

    Corrupt files are found by `VerifiedChunkStore`, which wraps this one; here only a file that cannot even be decoded
    raises IntegrityError.
    """

    def __init__(self, root: Path, *, min_free_bytes: int = MIN_FREE_BYTES) -> None:
        self._files = AtomicFiles(root / "cas", min_free_bytes, mode=0o440)

    async def get(self, digest: str) -> bytes | None:
        """See `ChunkStore.get`; also IntegrityError if the file is damaged beyond decoding."""
        return await asyncio.to_thread(self._get, check_digest(digest))

    async def put(self, digest: str, data: bytes) -> None:
        """See `ChunkStore.put`."""
        if len(data) > MAX_CHUNK_BYTES:
            raise OverLimitError(f"chunk {digest[:12]} has {len(data)} bytes, at most {MAX_CHUNK_BYTES} are kept")
        await asyncio.to_thread(self._put, check_digest(digest), data)

    async def missing(self, digests: Iterable[str]) -> set[str]:
        """See `ChunkStore.missing`; nothing is ever evicted from a directory."""
        return await asyncio.to_thread(self._missing, [check_digest(digest) for digest in digests])

    async def delete(self, digest: str) -> None:
        """Remove a chunk; removing what is not there is harmless."""
        await asyncio.to_thread(self._files.delete, _chunk_name(check_digest(digest)))

    def _get(self, digest: str) -> bytes | None:
        stored = self._files.read(_chunk_name(digest))
        return None if stored is None else decode(stored)

    def _put(self, digest: str, data: bytes) -> None:
        self._files.write(_chunk_name(digest), encode(data))

    def _missing(self, digests: list[str]) -> set[str]:
        return {digest for digest in digests if not self._files.exists(_chunk_name(digest))}


class DiskDocumentStore:
    """Documents as files; each part of a key is a checked identifier, so no key leaves the directory."""

    def __init__(self, root: Path, *, min_free_bytes: int = MIN_FREE_BYTES) -> None:
        self._files = AtomicFiles(root / "documents", min_free_bytes, mode=0o640)

    async def get(self, key: str) -> bytes | None:
        """See `DocumentStore.get`."""
        return await asyncio.to_thread(self._files.read, _document_name(key))

    async def put(self, key: str, data: bytes) -> None:
        """See `DocumentStore.put`. OverLimitError if the disk is full, UnavailableError if it cannot be written."""
        await asyncio.to_thread(self._files.write, _document_name(key), data)

    async def delete(self, key: str) -> None:
        """See `DocumentStore.delete`."""
        await asyncio.to_thread(self._files.delete, _document_name(key))

    async def keys(self, prefix: str) -> list[str]:
        """See `DocumentStore.keys`."""
        return await asyncio.to_thread(self._keys, prefix)

    def _keys(self, prefix: str) -> list[str]:
        folder = "/".join(_document_name(prefix.rpartition("/")[0]).split("/")) if "/" in prefix else ""
        return sorted(key for key in self._files.names(folder) if key.startswith(prefix))


def _chunk_name(digest: str) -> str:
    return f"{digest[:2]}/{digest}"  # 256 folders: a terabyte of chunks is 4,000 files in each


def _document_name(key: str) -> str:
    for part in key.split("/"):
        if not DIGEST_PATTERN.fullmatch(part):
            check_name(part, f"part of document key {key[:200]!r}:")
    if key.count("/") > 7:
        raise InvalidInputError(f"document key {key[:200]!r} has too many parts: at most 8 are allowed")
    return key
