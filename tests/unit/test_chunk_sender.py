# SPDX-License-Identifier: Apache-2.0
"""What serving chunks costs and promises, without a network: a connection is a function that takes its time."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Awaitable, Callable

import pytest

from dovetail.digest import sha256_hex
from dovetail.errors import BusyError, InvalidInputError, NotFoundError
from dovetail.pb.v1 import artifacts_pb2 as pb
from dovetail.rpc import chunk_sender
from dovetail.rpc.chunk_sender import MAX_DIGESTS, ChunkSender, SendLimits
from dovetail.store.coalesced import CoalescedChunkStore
from tests.fakes.counted_store import CountedStore
from tests.fakes.tiny_artifacts import random_bytes

CHUNK_BYTES = (1 << 20) - 4096
MEMORY_BYTES = 16 << 20
Write = Callable[[bytes], Awaitable[None]]


def sender(store: CountedStore, **limits: float) -> ChunkSender:
    chosen = SendLimits(**{"memory_bytes": MEMORY_BYTES, **limits})  # type: ignore[arg-type]
    return ChunkSender(CoalescedChunkStore(store, keep_bytes=chosen.keep_bytes), chosen)


def request(*digests: str, **fields: object) -> pb.FetchChunksRequest:
    return pb.FetchChunksRequest(digests=digests, **fields)  # type: ignore[arg-type]


class Taken:
    """A connection that takes everything at once."""

    def __init__(self) -> None:
        self.messages: list[pb.Chunk] = []

    async def __call__(self, frame: bytes) -> None:
        self.messages.append(pb.Chunk.FromString(frame))


class Stuck:
    """A connection that takes as many pieces as it is told, and waits with the next."""

    def __init__(self, pieces: int = 0) -> None:
        self.pieces = pieces
        self.waiting = asyncio.Event()

    async def __call__(self, frame: bytes) -> None:
        if self.pieces:
            self.pieces -= 1
            return
        self.waiting.set()
        await asyncio.Event().wait()


async def test_pieces_add_up_to_the_chunks_in_the_order_asked_for() -> None:
    contents = [random_bytes(size, size) for size in (100_000, 1, 4096, 65_536)]
    taken = Taken()

    await sender(CountedStore(*contents)).send(request(*map(sha256_hex, contents), piece_bytes=30_000), taken)

    assert max(len(message.data) for message in taken.messages) == 30_000, "small at first, then as large as asked for"
    joined: dict[str, bytes] = {}
    for message in taken.messages:
        assert message.offset == len(joined.get(message.digest, b""))
        assert message.encoded_bytes in (0, message.size_bytes)
        joined[message.digest] = joined.get(message.digest, b"") + message.data
    assert list(joined.values()) == contents


async def test_a_client_that_knows_no_pieces_gets_whole_chunks() -> None:
    contents = [random_bytes(CHUNK_BYTES, 1), random_bytes(5, 2)]
    taken = Taken()

    await sender(CountedStore(*contents)).send(request(*map(sha256_hex, contents)), taken)

    assert [message.data for message in taken.messages] == contents
    assert [(message.offset, message.encoded_bytes) for message in taken.messages] == [(0, 0), (0, 0)]


async def test_a_broken_chunk_goes_on_where_it_broke_unless_its_form_differs() -> None:
    content = random_bytes(10_000, 1)
    digest = sha256_hex(content)
    resumed, other_form, beyond = Taken(), Taken(), Taken()
    serving = sender(CountedStore(content))

    await serving.send(request(digest, piece_bytes=9000, first_offset=4000), resumed)
    await serving.send(
        request(digest, piece_bytes=9000, first_offset=4000, first_codec=pb.CHUNK_CODEC_ZSTD), other_form
    )
    await serving.send(request(digest, piece_bytes=9000, first_offset=10_000), beyond)

    assert resumed.messages[0].offset == 4000
    assert b"".join(message.data for message in resumed.messages) == content[4000:]
    assert other_form.messages[0].offset == 0
    assert beyond.messages[0].offset == 0


async def test_three_hundred_stuck_readers_of_different_chunks_hold_no_more_than_the_limits() -> None:
    contents = [random_bytes(CHUNK_BYTES, number) for number in range(40)]
    digests = [sha256_hex(content) for content in contents]
    serving = sender(CountedStore(*contents))
    stuck = [Stuck(pieces=number % 3) for number in range(300)]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tasks = [
            asyncio.create_task(
                serving.send(request(*digests[number % 40 :], *digests, piece_bytes=128 << 10), connection)
            )
            for number, connection in enumerate(stuck)
        ]
        await asyncio.wait_for(asyncio.gather(*(connection.waiting.wait() for connection in stuck)), 60)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    assert serving.pieces.peak_bytes <= MEMORY_BYTES // 8
    assert serving.held.peak_bytes <= serving.limits.hold_bytes
    assert after - before < MEMORY_BYTES + 300 * 40_000, "300 whole chunks would be 300 MiB"
    assert (serving.streams, serving.slow, serving.pieces.held_bytes, serving.held.held_bytes) == (0, 0, 0, 0)


async def test_a_fast_reader_is_served_beside_stuck_ones() -> None:
    contents = [random_bytes(CHUNK_BYTES, number) for number in range(4)]
    digests = [sha256_hex(content) for content in contents]
    serving = sender(CountedStore(*contents))
    stuck = [Stuck() for _ in range(100)]
    tasks = [asyncio.create_task(serving.send(request(*digests, piece_bytes=128 << 10), item)) for item in stuck]
    await asyncio.gather(*(item.waiting.wait() for item in stuck))
    taken = Taken()

    await asyncio.wait_for(serving.send(request(*digests, piece_bytes=128 << 10), taken), 60)

    assert sum(len(message.data) for message in taken.messages) == 4 * CHUNK_BYTES
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_reader_that_stalls_lets_go_of_its_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_sender, "STALL_S", 0.01)
    content = random_bytes(CHUNK_BYTES, 1)
    serving = sender(CountedStore(content))
    stuck = Stuck(pieces=1)
    task = asyncio.create_task(serving.send(request(sha256_hex(content), piece_bytes=64 << 10), stuck))
    await stuck.waiting.wait()
    held_while_fast = serving.held.peak_bytes

    async with asyncio.timeout(20):
        while serving.held.held_bytes or not serving.slow:
            await asyncio.sleep(0.001)

    assert held_while_fast == CHUNK_BYTES
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert serving.slow == 0


async def test_a_reader_that_takes_nothing_for_too_long_is_sent_away_with_advice() -> None:
    content = random_bytes(1000, 1)
    serving = sender(CountedStore(content), piece_timeout_s=0.05)

    with pytest.raises(BusyError, match="took nothing for 0.05 s") as caught:
        await serving.send(request(sha256_hex(content)), Stuck())

    assert 0 < caught.value.retry_after_s <= 5
    assert (serving.streams, serving.pieces.held_bytes) == (0, 0)


async def test_one_reader_too_many_is_sent_away_with_advice() -> None:
    content = random_bytes(1000, 1)
    serving = sender(CountedStore(content), streams=2)
    stuck = [Stuck(), Stuck()]
    tasks = [asyncio.create_task(serving.send(request(sha256_hex(content)), item)) for item in stuck]
    await asyncio.gather(*(item.waiting.wait() for item in stuck))

    with pytest.raises(BusyError, match="2 readers are being served"):
        await serving.send(request(sha256_hex(content)), Taken())

    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    await serving.send(request(sha256_hex(content)), Taken())
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)


async def test_a_chunk_that_is_gone_ends_the_stream_after_those_before_it() -> None:
    content = random_bytes(1000, 1)
    taken = Taken()

    with pytest.raises(NotFoundError, match="gone from every tier"):
        await sender(CountedStore(content)).send(request(sha256_hex(content), "0" * 64), taken)

    assert [message.data for message in taken.messages] == [content]


@pytest.mark.parametrize("digests", [["0" * 64] * (MAX_DIGESTS + 1), ["../secret"], [""]])
async def test_too_many_chunks_or_no_digests_are_refused(digests: list[str]) -> None:
    with pytest.raises(InvalidInputError):
        await sender(CountedStore()).send(request(*digests), Taken())


async def test_readers_of_the_same_chunks_share_one_read_of_each() -> None:
    contents = [random_bytes(50_000, number) for number in range(20)]
    store = CountedStore(*contents)
    serving = sender(store)

    await asyncio.gather(
        *(serving.send(request(*map(sha256_hex, contents), piece_bytes=16 << 10), Taken()) for _ in range(100))
    )

    assert set(store.reads.values()) == {1}


async def test_the_services_rate_holds_for_all_readers_together() -> None:
    content = random_bytes(100_000, 1)
    serving = sender(CountedStore(content), bytes_per_s=2_000_000)
    started_s = asyncio.get_running_loop().time()

    await asyncio.gather(*(serving.send(request(sha256_hex(content), piece_bytes=20_000), Taken()) for _ in range(10)))

    assert asyncio.get_running_loop().time() - started_s > 0.3, "a megabyte at two megabytes a second, less the burst"


async def test_a_readers_own_rate_holds() -> None:
    content = random_bytes(100_000, 1)
    started_s = asyncio.get_running_loop().time()

    await sender(CountedStore(content)).send(
        request(sha256_hex(content), piece_bytes=10_000, max_bytes_per_s=200_000), Taken()
    )

    assert asyncio.get_running_loop().time() - started_s > 0.3
