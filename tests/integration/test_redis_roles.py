# SPDX-License-Identifier: Apache-2.0
"""What a Redis must be set to, found out on real servers; and what happens when somebody changes it."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from compiler_svc.redis_guard import RedisGuard
from dovetail.artifact import CHUNK_BYTES
from dovetail.digest import sha256_hex
from dovetail.errors import PreconditionError, UnavailableError
from dovetail.store.redis_connection import RedisConnection, connect
from dovetail.store.redis_roles import inspect_blob, inspect_meta, same_server
from tests.fakes.redis_cycle import look_at_everything, storage_on, store_and_build
from tests.fixtures_redis import RedisServer

ALL = ("noeviction", "volatile-lfu", "volatile-lru", "volatile-random", "volatile-ttl", "allkeys-lru", "allkeys-lfu")
Servers = Callable[..., RedisServer]


@pytest.fixture
async def meta(redis_factory: Servers) -> RedisConnection:
    return connect(redis_factory("--maxmemory", "64mb").url)


@pytest.fixture
async def blob(redis_factory: Servers) -> RedisConnection:
    return connect(redis_factory("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lfu").url)


async def set_policy(redis: RedisConnection, policy: str) -> None:
    await redis.call("CONFIG", "SET", "maxmemory-policy", policy)


async def test_only_what_never_evicts_control_keys_may_keep_them(meta: RedisConnection) -> None:
    right: dict[bool, list[str]] = {True: [], False: []}
    for policy in ALL:
        await set_policy(meta, policy)
        for shared in (True, False):
            if not (await inspect_meta(meta, shared=shared)).refusals:
                right[shared].append(policy)
    await meta.aclose()

    assert right[False] == ["noeviction"]
    assert right[True] == ["noeviction", "volatile-lfu", "volatile-lru", "volatile-random", "volatile-ttl"]


async def test_the_refusal_says_which_server_what_it_has_and_what_to_set(meta: RedisConnection) -> None:
    await set_policy(meta, "allkeys-lru")

    alone = (await inspect_meta(meta, shared=False)).refusals
    shared = (await inspect_meta(meta, shared=True)).refusals
    await meta.aclose()

    assert "unix:…/redis.sock has maxmemory-policy allkeys-lru" in alone[0]
    assert "set noeviction (CONFIG SET maxmemory-policy noeviction" in alone[0]
    assert "set volatile-lfu" in shared[0]
    assert "DOVETAIL_BLOB_REDIS_URL" in shared[0]


async def test_what_only_hurts_is_a_warning(
    meta: RedisConnection, blob: RedisConnection, redis_factory: Servers
) -> None:
    good = connect(redis_factory("--appendonly", "yes").url)
    assert (await inspect_meta(good, shared=False)).warnings == ()
    assert (await inspect_blob(blob)) == replace(await inspect_blob(blob), refusals=(), warnings=())
    assert "appendonly yes" in (await inspect_meta(meta, shared=False)).warnings[0]
    assert "maxmemory-policy volatile-lfu" in " ".join((await inspect_meta(meta, shared=True)).warnings)
    assert "keeps chunks without a limit" in " ".join((await inspect_meta(good, shared=True)).warnings)

    said = (await inspect_blob(good)).warnings
    assert "set appendonly no" in said[0]
    assert "keeps chunks without a limit" in said[1]
    assert "stays full of old chunks" in (await inspect_blob(meta)).warnings[0]
    for redis in (good, meta, blob):
        await redis.aclose()


class _OldServer:
    async def infos(self, _: str) -> dict[str, dict[str, object]]:
        return {"": {"redis_version": "6.0.16", "maxmemory_policy": "noeviction", "aof_enabled": 1}}


async def test_a_server_that_is_too_old_is_refused() -> None:
    refusals = (await inspect_meta(RedisConnection(_OldServer(), "here"), shared=False)).refusals  # type: ignore[arg-type]

    assert refusals == (
        "Redis at here has version 6.0.16: Redis 6.2 or Valkey 7.2 is the oldest that works; upgrade it",
    )


async def test_two_addresses_of_one_server_are_found_to_be_one(redis_url: str, blob: RedisConnection) -> None:
    one, again = connect(redis_url), connect(f"{redis_url}?db=1")

    assert await same_server(one, again)
    assert not await same_server(one, blob)
    for redis in (one, again, blob):
        await redis.aclose()


async def test_a_guard_refuses_the_start_on_a_wrong_server(meta: RedisConnection, blob: RedisConnection) -> None:
    await set_policy(meta, "volatile-lfu")

    with pytest.raises(PreconditionError, match="set noeviction"):
        await RedisGuard(meta, blob).start()
    shared = RedisGuard(meta, meta)
    await shared.start()
    await shared.aclose()
    for redis in (meta, blob):
        await redis.aclose()


async def test_a_chunk_server_that_is_down_does_not_keep_a_process_from_starting(
    meta: RedisConnection, caplog: pytest.LogCaptureFixture
) -> None:
    blob = connect("redis://127.0.0.1:1", setting="DOVETAIL_BLOB_REDIS_URL")
    guard = RedisGuard(meta, blob)

    await guard.start()
    await guard.aclose()
    for redis in (meta, blob):
        await redis.aclose()

    assert "chunks come from the durable tier alone" in caplog.text
    assert "set DOVETAIL_BLOB_REDIS_URL" in caplog.text


async def until_answers(redis: RedisConnection, *, held: bool) -> str:
    """Ask until it is (not) held; the last refusal."""
    why = ""
    async with asyncio.timeout(30):
        while True:
            try:
                await redis.ping()
                if not held:
                    return why
            except UnavailableError as exc:
                why = str(exc)
                if held and "maxmemory-policy" in why:
                    return why
            await asyncio.sleep(0.01)


async def test_a_policy_that_is_changed_later_holds_all_work_until_it_is_put_right(
    meta: RedisConnection, blob: RedisConnection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    operator = connect(f"unix://{meta._client.connection_pool.connection_kwargs['path']}")  # type: ignore[attr-defined]
    guard = RedisGuard(meta, blob, every_s=0.02)
    await guard.start()

    await set_policy(operator, "allkeys-random")
    why = await until_answers(meta, held=True)
    await set_policy(operator, "noeviction")
    await until_answers(meta, held=False)
    await guard.aclose()
    for redis in (meta, blob, operator):
        await redis.aclose()

    assert "has maxmemory-policy allkeys-random" in why
    events = [record.message.split()[0] for record in caplog.records]
    assert events.count("redis.refused") == 1
    assert "redis.put_right" in events


async def test_a_server_that_comes_back_set_up_wrongly_is_noticed_at_once(redis_factory: Servers) -> None:
    server = redis_factory()
    meta = connect(server.url)
    guard = RedisGuard(meta, meta, every_s=3600.0)
    await guard.start()

    server.stop()
    with pytest.raises(UnavailableError, match="does not answer"):
        await meta.ping()
    server.start("--maxmemory-policy", "allkeys-lru")
    why = await until_answers(meta, held=True)
    await guard.aclose()
    await meta.aclose()

    assert "has maxmemory-policy allkeys-lru" in why


@pytest.mark.parametrize("module", ["compiler_svc", "compiler_svc.worker"])
async def test_no_process_starts_on_a_server_that_may_evict_jobs(
    redis_factory: Servers, tmp_path: Path, module: str
) -> None:
    server = redis_factory("--maxmemory-policy", "allkeys-lru")
    environ = {
        **os.environ,
        "DOVETAIL_REDIS_URL": server.url,
        "DOVETAIL_DATA_DIR": str(tmp_path),
        "DOVETAIL_COMPILER_ADDRESS": "127.0.0.1:0",
        "DOVETAIL_LOG_JSON": "0",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, env=environ, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    output = b"".join(await asyncio.wait_for(process.communicate(), 60))

    assert process.returncode == 1
    assert b"has maxmemory-policy allkeys-lru, which may evict the index and the jobs: set volatile-lfu" in output


async def test_chunks_that_are_evicted_while_eight_read_come_from_the_durable_tier(
    meta: RedisConnection, redis_factory: Servers, tmp_path: Path
) -> None:
    tight = redis_factory("--maxmemory", "12mb", "--maxmemory-policy", "allkeys-lfu")
    blob = connect(tight.url)
    data = [random.Random(number).randbytes(CHUNK_BYTES) for number in range(16)]
    digests = [sha256_hex(item) for item in data]
    url = f"unix://{meta._client.connection_pool.connection_kwargs['path']}"  # type: ignore[attr-defined]
    async with storage_on(tmp_path, url, DOVETAIL_BLOB_REDIS_URL=tight.url) as storage:
        for digest, item in zip(digests, data, strict=True):
            await storage.chunks.put(digest, item)

        async def read(seed: int) -> int:
            order = list(range(16))
            random.Random(seed).shuffle(order)
            return sum([await storage.chunks.get(digests[number]) == data[number] for number in order])

        assert await asyncio.gather(*(read(seed) for seed in range(8))) == [16] * 8
        assert await storage.chunks.missing(digests) == set()
        evicted = (await blob.infos())[""]["evicted_keys"]
        assert await storage.hot.missing(digests)
    await blob.aclose()
    await meta.aclose()

    assert evicted > 16


async def test_both_roles_flushed_in_the_middle_lose_nothing_that_was_published(
    meta: RedisConnection, blob: RedisConnection, tmp_path: Path
) -> None:
    urls = [f"unix://{item._client.connection_pool.connection_kwargs['path']}" for item in (meta, blob)]  # type: ignore[attr-defined]
    async with storage_on(tmp_path, urls[0], DOVETAIL_BLOB_REDIS_URL=urls[1]) as storage:
        ready = await store_and_build(storage)
        before = await storage.index.manifest(ready)
        await look_at_everything(storage)

        await meta.call("FLUSHALL")
        await blob.call("FLUSHALL")

        assert await storage.index.manifest(ready) == before
        assert (await storage.index.model("digits", alias="prod")).model.version == 1
    for redis in (meta, blob):
        await redis.aclose()
