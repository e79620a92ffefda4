# SPDX-License-Identifier: Apache-2.0
"""A wrapper that checks the sha256 of every chunk that passes, so that nothing above it can see a wrong byte.

A wrong chunk is a miss: it is deleted from the tier that had it, counted and logged, and the next tier or a rebuild
supplies it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from dovetail.digest import sha256_hex
from dovetail.errors import DovetailError, IntegrityError
from dovetail.store.base import ChunkStore
from dovetail.store.codec import unpack
from dovetail.store.encoded import EncodedChunk, read_encoded

_log = logging.getLogger(__name__)


@runtime_checkable
class Deletable(Protocol):
    """A store that can forget one chunk."""

    async def delete(self, digest: str) -> None:
        """Remove a chunk; removing what is not there is harmless."""
        ...


class VerifiedChunkStore:
    """Only true chunks come out of the inner store, and only true ones go in.

    Attributes:
        corrupt: How many wrong chunks were met since the start.
    """

    def __init__(self, inner: ChunkStore, *, name: str = "") -> None:
        self._inner = inner
        self._name = name or type(inner).__name__
        self.corrupt = 0

    async def get(self, digest: str) -> bytes | None:
        """See `ChunkStore.get`; wrong bytes count as absent."""
        try:
            data = await self._inner.get(digest)
        except IntegrityError as exc:
            await self._discard(digest, str(exc))
            return None
        if data is None:
            return None
        if await asyncio.to_thread(sha256_hex, data) == digest:
            return data
        await self._discard(digest, "sha256 differs")
        return None

    async def get_encoded(self, digest: str) -> EncodedChunk | None:
        """See `EncodedReader.get_encoded`; wrong bytes count as absent."""
        try:
            chunk = await read_encoded(self._inner, digest)
            if chunk is None or await asyncio.to_thread(_digest, chunk) == digest:
                return chunk
        except IntegrityError as exc:
            await self._discard(digest, str(exc))
            return None
        await self._discard(digest, "sha256 differs")
        return None

    async def put(self, digest: str, data: bytes) -> None:
        """See `ChunkStore.put`.

        Raises:
            IntegrityError: The bytes are not what the digest says; nothing is stored.
        """
        actual = await asyncio.to_thread(sha256_hex, data)
        if actual != digest:
            raise IntegrityError(
                f"chunk {digest[:12]}… was to be stored with bytes whose sha256 is {actual[:12]}…; refused"
            )
        await self._inner.put(digest, data)

    async def missing(self, digests: Iterable[str]) -> set[str]:
        """See `ChunkStore.missing`; presence only, content is checked when it is read."""
        return await self._inner.missing(digests)

    async def delete(self, digest: str) -> None:
        """Remove a chunk, if the inner store can."""
        if isinstance(self._inner, Deletable):
            await self._inner.delete(digest)

    async def _discard(self, digest: str, why: str) -> None:
        self.corrupt += 1
        _log.warning("chunk.corrupt store=%s digest=%s why=%r", self._name, digest, why)
        try:
            await self.delete(digest)
        except DovetailError as exc:  # the reader is safe either way; the next read meets it again
            _log.warning("chunk.corrupt_kept store=%s digest=%s why=%r", self._name, digest, str(exc))


def _digest(chunk: EncodedChunk) -> str:
    return sha256_hex(unpack(chunk.codec, chunk.data, limit_bytes=chunk.size_bytes))
