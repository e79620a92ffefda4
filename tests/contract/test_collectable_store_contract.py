# SPDX-License-Identifier: Apache-2.0
"""What a durable chunk store promises to whoever collects its garbage: the directory and the object store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from dovetail.digest import sha256_hex
from dovetail.store.base import CollectableChunkStore, StoredChunk
from dovetail.store.disk import DiskChunkStore
from dovetail.store.object_address import ObjectAddress
from dovetail.store.object_bucket import open_bucket
from dovetail.store.object_chunks import ObjectChunkStore

DATA = b"dovetail " * 1000
DIGEST = sha256_hex(DATA)
OTHER = sha256_hex(b"other")
FAR = 1 << 50  # ms; later than anything


@pytest.fixture(params=["disk", "object"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CollectableChunkStore:
    if request.param == "disk":
        return DiskChunkStore(tmp_path)
    bucket = open_bucket(ObjectAddress.parse(request.getfixturevalue("s3_url")))
    return ObjectChunkStore(bucket, touch_after_s=0, known_for_s=0)


async def all_in(pages: AsyncIterator[Sequence[StoredChunk]]) -> dict[str, StoredChunk]:
    return {chunk.digest: chunk async for page in pages for chunk in page}


async def trash(store: CollectableChunkStore, digest: str = DIGEST) -> None:
    """Into the trash, as soon as the store can tell that from the put: one of them has seconds for a clock."""
    deadline_s = time.monotonic() + 30
    while not await store.trash(digest, untouched_since_ms=FAR):
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.02)


async def test_it_is_collectable(store: CollectableChunkStore) -> None:
    assert isinstance(store, CollectableChunkStore)


async def test_chunks_are_listed_with_what_they_take_and_when_they_were_put(store: CollectableChunkStore) -> None:
    before_ms = await store.now_ms()
    await store.put(DIGEST, DATA)
    await store.put(OTHER, b"other")

    found = await all_in(store.chunks())

    assert set(found) == {DIGEST, OTHER}
    assert 0 < found[DIGEST].size_bytes < len(DATA)
    assert before_ms - 2000 <= found[DIGEST].touched_ms <= await store.now_ms() + 2000
    assert await store.stat(DIGEST) == found[DIGEST]
    assert await store.stat(sha256_hex(b"absent")) is None


async def test_the_clock_is_that_of_the_times_and_goes_on(store: CollectableChunkStore) -> None:
    first_ms = await store.now_ms()

    assert abs(first_ms - time.time() * 1000) < 60_000
    assert await store.now_ms() >= first_ms


async def test_a_chunk_in_the_trash_is_not_listed_and_can_be_read_and_taken_out(store: CollectableChunkStore) -> None:
    await store.put(DIGEST, DATA)
    await trash(store)

    assert await all_in(store.chunks()) == {}
    assert set(await all_in(store.trashed())) == {DIGEST}
    assert await store.stat(DIGEST) is None
    assert await store.get(DIGEST) == DATA
    assert await store.restore(DIGEST)
    assert set(await all_in(store.chunks())) == {DIGEST}
    assert await all_in(store.trashed()) == {}
    assert not await store.restore(DIGEST)
    assert not await store.restore(OTHER)


async def test_trashing_twice_does_not_begin_its_time_anew(store: CollectableChunkStore) -> None:
    await store.put(DIGEST, DATA)
    await trash(store)
    first = (await all_in(store.trashed()))[DIGEST]

    assert await store.trash(DIGEST, untouched_since_ms=FAR)
    assert (await all_in(store.trashed()))[DIGEST] == first


async def test_a_chunk_that_was_touched_since_is_not_trashed(store: CollectableChunkStore) -> None:
    decided_ms = await store.now_ms() - 5000
    await store.put(DIGEST, DATA)

    assert not await store.trash(DIGEST, untouched_since_ms=decided_ms)
    assert set(await all_in(store.chunks())) == {DIGEST}


async def test_what_is_not_there_cannot_be_trashed(store: CollectableChunkStore) -> None:
    assert not await store.trash(DIGEST, untouched_since_ms=FAR)
    assert await all_in(store.trashed()) == {}


@pytest.mark.parametrize("how", ["missing", "put"])
async def test_who_asks_for_a_chunk_in_the_trash_or_puts_it_takes_it_out_for_good(
    store: CollectableChunkStore, how: str
) -> None:
    await store.put(DIGEST, DATA)
    await trash(store)
    trashed = (await all_in(store.trashed()))[DIGEST]

    if how == "missing":
        assert await store.missing([DIGEST]) == set()
    else:
        await store.put(DIGEST, DATA)

    assert not await store.purge(DIGEST, trashed_until_ms=trashed.touched_ms)
    assert set(await all_in(store.chunks())) == {DIGEST}
    assert await all_in(store.trashed()) == {}
    assert await store.get(DIGEST) == DATA


async def test_purging_waits_for_its_time_and_then_removes_for_good(store: CollectableChunkStore) -> None:
    await store.put(DIGEST, DATA)
    await trash(store)

    assert not await store.purge(DIGEST, trashed_until_ms=0)
    assert await store.get(DIGEST) == DATA
    assert await store.purge(DIGEST, trashed_until_ms=FAR)
    assert await store.get(DIGEST) is None
    assert await store.missing([DIGEST]) == {DIGEST}
    assert await all_in(store.chunks()) == await all_in(store.trashed()) == {}


async def test_a_chunk_that_is_not_in_the_trash_is_not_purged(store: CollectableChunkStore) -> None:
    await store.put(DIGEST, DATA)

    assert not await store.purge(DIGEST, trashed_until_ms=FAR)
    assert await store.get(DIGEST) == DATA


async def test_deleting_removes_from_the_trash_too(store: CollectableChunkStore) -> None:
    await store.put(DIGEST, DATA)
    await trash(store)

    await store.delete(DIGEST)

    assert await store.get(DIGEST) is None
    assert await all_in(store.trashed()) == {}


async def test_asking_touches(store: CollectableChunkStore) -> None:
    await store.put(DIGEST, DATA)
    first = await store.stat(DIGEST)
    assert first is not None
    deadline_s = time.monotonic() + 30

    while True:
        assert await store.missing([DIGEST]) == set()
        now = await store.stat(DIGEST)
        assert now is not None
        if now.touched_ms > first.touched_ms:
            break
        assert time.monotonic() < deadline_s
