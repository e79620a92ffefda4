# SPDX-License-Identifier: Apache-2.0
"""Hundreds of real gRPC readers that take little: what they cost the service, and that others are still served."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from dovetail.artifact import CHUNK_BYTES
from dovetail.digest import sha256_hex
from dovetail.errors import BusyError, UnavailableError
from dovetail.pb.v1 import artifacts_pb2 as pb
from dovetail.pb.v1.artifacts_pb2_grpc import ArtifactCacheStub
from dovetail.rpc.chunk_reader import ReadSettings, Unfinished, read_chunks
from dovetail.rpc.chunk_sender import SendLimits
from dovetail.rpc.status import error_from_rpc
from tests.fakes.chunk_service import SMALL_WINDOW, channel_of_its_own, chunk_service, digests_of
from tests.fakes.tiny_artifacts import random_bytes

SLOW = 400
CHANNELS = 10
CHUNKS = 40
PIECE_BYTES = 128 << 10


@asynccontextmanager
async def service_process(folder: Path) -> AsyncIterator[tuple[str, int]]:
    """Address and process id of a service of its own process."""
    port_file = folder / "port"
    argv = [sys.executable, "-m", "tests.fakes.chunk_service", str(port_file), str(CHUNKS), "7"]
    process = await asyncio.create_subprocess_exec(*argv, cwd=Path(__file__).parents[2])
    try:
        async with asyncio.timeout(60):
            while not port_file.exists():
                assert process.returncode is None
                await asyncio.sleep(0.01)
        yield f"127.0.0.1:{port_file.read_text(encoding='ascii').strip()}", process.pid
    finally:
        process.kill()
        await process.wait()


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def fetch(channel: grpc.aio.Channel, digests: list[str], **fields: int) -> grpc.aio.UnaryStreamCall:  # type: ignore[type-arg]
    return ArtifactCacheStub(channel).FetchChunks(pb.FetchChunksRequest(digests=digests, **fields))


async def drained(call: grpc.aio.UnaryStreamCall) -> None:  # type: ignore[type-arg]
    while await call.read() is not grpc.aio.EOF:
        pass


async def grpc_is_quiet() -> None:
    """Wait until grpc.aio has heard the end of every call.

    It has one byte in a socket for each event that is unread, and room for some 280. If the last channel goes while
    that is full, the thread that writes them is waited for, and waits (grpc/grpc#40989; in 1.72.1, not in 1.85.1).
    """
    if calls := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(calls)


async def test_four_hundred_slow_readers_cost_little_memory_and_do_not_stop_a_fast_one(tmp_path: Path) -> None:
    digests = digests_of(CHUNKS, 7)
    async with service_process(tmp_path) as (address, pid), AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(channel_of_its_own(address, number, *SMALL_WINDOW))
            for number in range(CHANNELS)
        ]
        before = resident_bytes(pid)

        async def slow(number: int) -> grpc.aio.UnaryStreamCall:  # type: ignore[type-arg]
            call = fetch(channels[number % CHANNELS], digests[number % CHUNKS :] + digests, piece_bytes=PIECE_BYTES)
            await call.read()
            return call

        calls = await asyncio.gather(*(slow(number) for number in range(SLOW)))
        fast = [
            chunk
            async for chunk in read_chunks(
                ArtifactCacheStub(channels[0]), dict.fromkeys(digests, CHUNK_BYTES), settings=ReadSettings(),
                unfinished=Unfinished(),
            )
        ]  # fmt: skip
        grown = resident_bytes(pid) - before
        for call in calls:
            call.cancel()
        await grpc_is_quiet()

    assert [sha256_hex(chunk.data) for chunk in fast] == digests
    assert grown < (200 << 20), (
        f"{grown >> 20} MiB; a chunk for each would be {SLOW} MiB, with read-ahead four times it"
    )


async def test_a_reader_that_takes_nothing_is_ended_with_a_status_that_says_come_again() -> None:
    content = random_bytes(CHUNK_BYTES, 1)
    async with (
        chunk_service(content, limits=SendLimits(piece_timeout_s=0.1)) as service,
        channel_of_its_own(service.address, 0, *SMALL_WINDOW) as channel,
    ):
        call = fetch(channel, [sha256_hex(content)] * 64, piece_bytes=PIECE_BYTES)
        await call.read()
        async with asyncio.timeout(30):
            while service.sender.streams:
                await asyncio.sleep(0.01)
        held = service.sender.pieces.held_bytes

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await drained(call)

    assert held == 0
    assert isinstance(error_from_rpc(caught.value), BusyError)


async def test_one_reader_too_many_hears_when_to_come_back() -> None:
    content = random_bytes(CHUNK_BYTES, 1)
    async with (
        chunk_service(content, limits=SendLimits(streams=1)) as service,
        channel_of_its_own(service.address, 0, *SMALL_WINDOW) as channel,
    ):
        slow = fetch(channel, [sha256_hex(content)] * 64, piece_bytes=PIECE_BYTES)
        await slow.read()

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await fetch(channel, [sha256_hex(content)]).read()
        slow.cancel()

    refused = error_from_rpc(caught.value)
    assert isinstance(refused, BusyError)
    assert 0 < refused.retry_after_s <= 5


async def test_a_broken_stream_goes_on_within_the_chunk_where_it_broke() -> None:
    content = random_bytes(CHUNK_BYTES, 1)
    digest = sha256_hex(content)
    unfinished = Unfinished()
    async with chunk_service(content) as service, grpc.aio.insecure_channel(service.address) as channel:
        stub = ArtifactCacheStub(channel)
        interrupted = stub.FetchChunks(pb.FetchChunksRequest(digests=[digest], piece_bytes=300_000, as_stored=True))
        piece = await interrupted.read()
        interrupted.cancel()
        unfinished.digest, unfinished.codec, unfinished.end = digest, piece.codec, piece.encoded_bytes
        unfinished.pieces.append(piece.data)
        sent_before = service.sender.sent_bytes

        (chunk,) = [
            found
            async for found in read_chunks(
                stub, {digest: CHUNK_BYTES}, settings=ReadSettings(), unfinished=unfinished
            )
        ]  # fmt: skip
        sent = service.sender.sent_bytes - sent_before

    assert chunk.data == content
    assert sent <= CHUNK_BYTES - len(piece.data) + 300_000, "what had come is not sent again"
    assert unfinished.size_bytes == 0


async def test_a_service_that_dies_between_pieces_leaves_what_came() -> None:
    content = random_bytes(CHUNK_BYTES, 1)
    unfinished = Unfinished()
    slow = SendLimits(bytes_per_s=200_000)
    async with chunk_service(content, limits=slow) as service, grpc.aio.insecure_channel(service.address) as channel:
        wanted = {sha256_hex(content): CHUNK_BYTES}
        reading = read_chunks(ArtifactCacheStub(channel), wanted, settings=ReadSettings(), unfinished=unfinished)
        first = asyncio.create_task(anext(reading))
        async with asyncio.timeout(30):
            while not unfinished.size_bytes:
                await asyncio.sleep(0.01)
        await service.rpc.server.stop(None)

        with pytest.raises(UnavailableError):
            await first

    assert 0 < unfinished.size_bytes < CHUNK_BYTES
    assert b"".join(unfinished.pieces) == content[: unfinished.size_bytes]
