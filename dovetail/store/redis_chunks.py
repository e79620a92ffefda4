# SPDX-License-Identifier: Apache-2.0
"""The hot tier: chunks in Redis, each under its own key with a time to live.

With `maxmemory-policy volatile-lfu` only keys with a time to live can be evicted, and chunks are the only ones that
have it, so memory pressure costs chunks (a miss, served by the durable tier) and never the index.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from itertools import islice

from dovetail.digest import check_digest
from dovetail.errors import OverLimitError
from dovetail.store.codec import MAX_CHUNK_BYTES, decode, encode
from dovetail.store.encoded import EncodedChunk, encoded_chunk
from dovetail.store.redis_connection import RedisConnection

TTL_S = 7 * 24 * 3600  # a week without a reader; every read and every question for it starts the week anew
_BATCH = 512  # questions in one round trip: long enough to be rare, short enough not to hold up others


class RedisChunkStore:
    """Chunks at `c:<digest>`. Loss is only a miss, so put `TieredChunkStore` over this and a durable store."""

    def __init__(self, redis: RedisConnection, *, ttl_s: int = TTL_S, prefix: str = "c:") -> None:
        self._redis = redis
        self._ttl_s = ttl_s
        self._prefix = prefix

    async def get(self, digest: str) -> bytes | None:
        """See `ChunkStore.get`; also IntegrityError if the value is damaged beyond decoding."""
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
        key = self._key(digest)
        await self._redis.call("SET", key, await asyncio.to_thread(encode, data), "EX", self._ttl_s)

    async def missing(self, digests: Iterable[str]) -> set[str]:
        """See `ChunkStore.missing`; protection is a fresh time to live."""
        absent: set[str] = set()
        pending = iter(digests)
        while batch := list(islice(pending, _BATCH)):
            absent |= await self._missing(batch)
        return absent

    async def delete(self, digest: str) -> None:
        """Remove a chunk; removing what is not there is harmless."""
        await self._redis.call("UNLINK", self._key(digest))

    async def _read(self, digest: str) -> bytes | None:
        stored: bytes | None = await self._redis.call("GETEX", self._key(digest), "EX", self._ttl_s)
        return stored

    async def _missing(self, batch: Sequence[str]) -> set[str]:
        kept = await self._redis.call_all([("EXPIRE", self._key(digest), self._ttl_s) for digest in batch])
        return {digest for digest, found in zip(batch, kept, strict=True) if not found}

    def _key(self, digest: str) -> str:
        return self._prefix + check_digest(digest)
