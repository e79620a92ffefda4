# SPDX-License-Identifier: Apache-2.0
"""Chunks in and out of each tier, by size: the durable tier (a directory, page cache warm) and Redis, both verified.

Random bytes, so that nothing compresses. Several are under way at once, as everywhere in the product: hashing has a
core to itself while another chunk is read or written.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from dovetail.artifact import CHUNK_BYTES
from dovetail.store.base import ChunkStore
from dovetail.store.disk import DiskChunkStore
from dovetail.store.redis_chunks import RedisChunkStore
from dovetail.store.redis_connection import connect
from dovetail.store.verified import VerifiedChunkStore
from tests.bench.figures import Figure, percentile
from tests.bench.own_redis import own_redis

SIZES = (64 << 10, 256 << 10, CHUNK_BYTES)
WHOLE_BYTES = 128 << 20
PASSES = 5
AT_ONCE = 4


def run() -> list[Figure]:
    """Measure."""
    return asyncio.run(_run())


async def _run() -> list[Figure]:
    found: list[Figure] = []
    for size in SIZES:
        chunks = [os.urandom(size) for _ in range(WHOLE_BYTES // size)]
        digests = [hashlib.sha256(chunk).hexdigest() for chunk in chunks]
        note = f"{len(chunks)} chunks, {AT_ONCE} at once; sha256 on one core {_sha256(chunks):.0f} MB/s"
        with tempfile.TemporaryDirectory(prefix="dovetail-bench-") as folder:
            disk = VerifiedChunkStore(DiskChunkStore(Path(folder)))
            found += await _tier("durable tier", disk, chunks, digests, 1000.0, note)
        with own_redis() as url:
            redis = connect(url)
            try:
                found += await _tier("Redis", VerifiedChunkStore(RedisChunkStore(redis)), chunks, digests, 400.0, note)
            finally:
                await redis.aclose()
    return found


async def _tier(
    tier: str, store: ChunkStore, chunks: Sequence[bytes], digests: Sequence[str], goal: float, note: str
) -> list[Figure]:
    size = len(chunks[0])
    put_s = await _timed([lambda d=d, c=c: store.put(d, c) for d, c in zip(digests, chunks, strict=True)])
    got_s = [await _timed([lambda d=d: store.get(d) for d in digests]) for _ in range(PASSES)]
    moved = size * len(chunks) / 1e6
    name = f"{tier}, {size >> 10} KiB"
    its_goal = goal if size == CHUNK_BYTES else 0.0
    return [
        Figure(f"{name}: put", moved / put_s, "MB/s", lower_is_better=False, note=note),
        Figure(f"{name}: get", moved / percentile(got_s, 50), "MB/s", its_goal, lower_is_better=False, note=note),
    ]


async def _timed(work: Sequence[Callable[[], Awaitable[object]]]) -> float:
    waiting = iter(work)

    async def some() -> None:
        for item in waiting:
            await item()

    began_s = time.perf_counter()
    await asyncio.gather(*(some() for _ in range(AT_ONCE)))
    return time.perf_counter() - began_s


def _sha256(chunks: Sequence[bytes]) -> float:
    began_s = time.perf_counter()
    for chunk in chunks:
        hashlib.sha256(chunk).digest()
    return sum(map(len, chunks)) / 1e6 / (time.perf_counter() - began_s)
