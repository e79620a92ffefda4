# SPDX-License-Identifier: Apache-2.0
"""Chunks in the form in which a store keeps them, for those who only pass them on.

Decompressing a chunk to compress it again for the wire, or to send it larger than it is kept, would cost a server more
than all else. A store that can hand out its own form says so by having `get_encoded`; for the others the plain bytes
are the form.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from dovetail.errors import IntegrityError
from dovetail.store.base import ChunkStore
from dovetail.store.codec import Codec, plain_size, unpack


@dataclass(frozen=True, slots=True)
class EncodedChunk:
    """A chunk as it is kept; its digest was checked if the store that gave it checks.

    Attributes:
        codec: Form of `data`.
        data: The bytes in that form.
        size_bytes: Plain size.
    """

    codec: Codec
    data: bytes
    size_bytes: int


@runtime_checkable
class EncodedReader(Protocol):
    """A chunk store that can hand out the form in which it keeps a chunk."""

    async def get_encoded(self, digest: str) -> EncodedChunk | None:
        """As `ChunkStore.get`, and as trustworthy, but in the form that is kept."""
        ...


def encoded_chunk(stored: bytes) -> EncodedChunk:
    """What `codec.encode` made, without undoing it.

    Raises:
        IntegrityError: It cannot be that.
    """
    if not stored:
        raise IntegrityError("stored bytes are empty: not even the encoding is there")
    try:
        codec = Codec(stored[0])
    except ValueError:
        raise IntegrityError(
            f"stored bytes have the unknown encoding {stored[0]}; written by a newer version?"
        ) from None
    data = stored[1:]
    return EncodedChunk(codec, data, plain_size(codec, data))


async def read_encoded(store: ChunkStore, digest: str) -> EncodedChunk | None:
    """A chunk in the cheapest form that the store has. Raises as `ChunkStore.get`."""
    if isinstance(store, EncodedReader):
        return await store.get_encoded(digest)
    data = await store.get(digest)
    return None if data is None else EncodedChunk(Codec.PLAIN, data, len(data))


async def plain_form(chunk: EncodedChunk) -> EncodedChunk:
    """The same chunk, plain. Raises IntegrityError if it is damaged."""
    if chunk.codec is Codec.PLAIN:
        return chunk
    data = await asyncio.to_thread(unpack, chunk.codec, chunk.data, limit_bytes=chunk.size_bytes)
    return EncodedChunk(Codec.PLAIN, data, len(data))
