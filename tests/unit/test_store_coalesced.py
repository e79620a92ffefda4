# SPDX-License-Identifier: Apache-2.0
"""One read for all who want a chunk, within bounds."""

import asyncio

import pytest

from dovetail.digest import sha256_hex
from dovetail.errors import UnavailableError
from dovetail.store.coalesced import CoalescedChunkStore
from tests.fakes.counted_store import CountedStore

CONTENTS = [bytes([number]) * 1000 for number in range(10)]
DIGESTS = [sha256_hex(content) for content in CONTENTS]


async def test_five_hundred_readers_cost_one_read_of_each_chunk() -> None:
    inner = CountedStore(*CONTENTS)
    store = CoalescedChunkStore(inner)

    async def reader() -> list[bytes | None]:
        return [await store.get(digest) for digest in DIGESTS]

    everything = await asyncio.gather(*(reader() for _ in range(500)))

    assert all(contents == CONTENTS for contents in everything)
    assert set(inner.reads.values()) == {1}


async def test_what_is_kept_and_what_is_read_at_once_stay_within_their_bounds() -> None:
    inner = CountedStore(*CONTENTS)
    store = CoalescedChunkStore(inner, keep_bytes=3500, reads=2)

    await asyncio.gather(*(store.get(digest) for digest in DIGESTS))
    await store.get(DIGESTS[-1])
    await store.get(DIGESTS[0])

    assert store.kept_bytes == 3000
    assert inner.at_once == 2
    assert inner.reads[DIGESTS[-1]] == 1, "kept"
    assert inner.reads[DIGESTS[0]] == 2, "pushed out by newer ones, so read again"


async def test_a_reader_that_goes_away_leaves_the_read_to_the_others() -> None:
    inner = CountedStore(*CONTENTS)
    inner.gate.clear()
    store = CoalescedChunkStore(inner)
    first, second = (asyncio.create_task(store.get(DIGESTS[0])) for _ in range(2))
    await asyncio.sleep(0)

    first.cancel()
    inner.gate.set()

    assert await second == CONTENTS[0]
    assert inner.reads[DIGESTS[0]] == 1


async def test_a_failure_reaches_all_who_wait_and_is_not_remembered() -> None:
    inner = CountedStore(*CONTENTS)
    inner.error = UnavailableError("the disk is away")
    store = CoalescedChunkStore(inner)

    outcomes = await asyncio.gather(*(store.get(DIGESTS[0]) for _ in range(5)), return_exceptions=True)
    inner.error = None

    assert {str(outcome) for outcome in outcomes} == {"the disk is away"}
    assert await store.get(DIGESTS[0]) == CONTENTS[0]
    assert inner.reads[DIGESTS[0]] == 2


async def test_a_chunk_that_is_not_there_is_asked_for_again_each_time() -> None:
    inner = CountedStore()
    store = CoalescedChunkStore(inner)

    assert await store.get(DIGESTS[0]) is None
    await inner.put(DIGESTS[0], CONTENTS[0])

    assert await store.get(DIGESTS[0]) == CONTENTS[0]


async def test_a_deleted_chunk_is_not_served_from_memory() -> None:
    inner = CountedStore(*CONTENTS)
    store = CoalescedChunkStore(inner)
    await store.get(DIGESTS[0])

    await store.delete(DIGESTS[0])

    assert await store.get(DIGESTS[0]) is None
    assert store.kept_bytes == 0


async def test_what_was_read_ahead_is_there_when_it_is_asked_for() -> None:
    inner = CountedStore(*CONTENTS)
    store = CoalescedChunkStore(inner)

    store.prefetch(DIGESTS)
    store.prefetch(DIGESTS)
    found = [await store.get(digest) for digest in DIGESTS]

    assert found == CONTENTS
    assert set(inner.reads.values()) == {1}


@pytest.mark.filterwarnings("error")
async def test_closing_stops_reads_that_nobody_waits_for() -> None:
    inner = CountedStore(*CONTENTS)
    inner.gate.clear()
    store = CoalescedChunkStore(inner)
    store.prefetch(DIGESTS[:3])
    await asyncio.sleep(0)

    await store.aclose()

    assert store.kept_bytes == 0
