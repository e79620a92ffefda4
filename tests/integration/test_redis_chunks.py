# SPDX-License-Identifier: Apache-2.0
"""Chunks in a real Redis: damaged, evicted, out of memory, and gone altogether."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from dovetail.artifact import CHUNK_BYTES
from dovetail.digest import sha256_hex
from dovetail.errors import OverLimitError, UnavailableError
from dovetail.store.disk import DiskChunkStore
from dovetail.store.redis_chunks import RedisChunkStore
from dovetail.store.redis_connection import RedisConnection, connect
from dovetail.store.tiered import TieredChunkStore
from dovetail.store.verified import VerifiedChunkStore
from tests.fixtures_redis import RedisServer

DATA = random.Random(0).randbytes(CHUNK_BYTES)
DIGEST = sha256_hex(DATA)


async def test_a_byte_flipped_in_redis_is_never_returned_and_is_healed_from_disk(
    redis: RedisConnection, tmp_path: Path
) -> None:
    hot = VerifiedChunkStore(RedisChunkStore(redis))
    store = TieredChunkStore(hot, VerifiedChunkStore(DiskChunkStore(tmp_path)))
    await store.put(DIGEST, DATA)
    await redis.call("SETRANGE", f"c:{DIGEST}", 1000, bytes((DATA[999] ^ 1,)))

    assert await RedisChunkStore(redis).get(DIGEST) != DATA
    assert await hot.get(DIGEST) is None
    assert await store.get(DIGEST) == DATA
    assert await hot.get(DIGEST) == DATA


async def test_asking_for_a_chunk_and_reading_it_start_its_time_anew(redis: RedisConnection) -> None:
    store = RedisChunkStore(redis, ttl_s=1000)
    await store.put(DIGEST, DATA)

    for touch in (store.missing([DIGEST]), store.get(DIGEST)):
        await redis.call("EXPIRE", f"c:{DIGEST}", 5)
        await touch
        assert await redis.call("TTL", f"c:{DIGEST}") > 5


async def test_redis_down_means_reads_from_disk_and_back_when_it_returns(
    redis_factory: Callable[..., RedisServer], tmp_path: Path
) -> None:
    server = redis_factory()
    redis = connect(server.url)
    hot = RedisChunkStore(redis)
    store = TieredChunkStore(hot, DiskChunkStore(tmp_path))
    await store.put(DIGEST, DATA)

    server.stop()

    assert await store.get(DIGEST) == DATA
    await store.put(sha256_hex(b"new"), b"new")
    assert await store.missing([DIGEST, sha256_hex(b"new")]) == set()
    with pytest.raises(UnavailableError, match="does not answer"):
        await hot.get(DIGEST)
    await redis.aclose()


async def test_memory_pressure_evicts_chunks_and_never_the_index(redis_factory: Callable[..., RedisServer]) -> None:
    redis = connect(redis_factory("--maxmemory", "8mb", "--maxmemory-policy", "volatile-lfu").url)
    store = RedisChunkStore(redis)
    await redis.call("SET", "{dovetail}:meta", "kept")

    digests = []
    for number in range(16):
        data = random.Random(number).randbytes(CHUNK_BYTES)
        digests.append(sha256_hex(data))
        await store.put(digests[-1], data)

    assert await redis.call("GET", "{dovetail}:meta") == b"kept"
    assert 0 < len(await store.missing(digests)) < 16
    await redis.aclose()


async def test_a_redis_that_may_not_evict_says_that_it_is_full(redis_factory: Callable[..., RedisServer]) -> None:
    redis = connect(redis_factory("--maxmemory", "2mb", "--maxmemory-policy", "noeviction").url)
    store = RedisChunkStore(redis)

    async def fill() -> None:
        for number in range(4):
            data = random.Random(number).randbytes(CHUNK_BYTES)
            await store.put(sha256_hex(data), data)

    with pytest.raises(OverLimitError, match="out of memory: raise its maxmemory"):
        await fill()
    await redis.aclose()


async def test_a_wrong_password_is_told_without_naming_it(redis_factory: Callable[..., RedisServer]) -> None:
    server = redis_factory("--requirepass", "right-secret")
    for url in (server.url, server.url.replace("unix://", "unix://:wrong-secret@")):
        redis = connect(url)
        with pytest.raises(UnavailableError, match="refuses our user or password") as caught:
            await redis.ping()
        assert "secret" not in str(caught.value)
        await redis.aclose()
