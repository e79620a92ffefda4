# SPDX-License-Identifier: Apache-2.0
"""Calls that a real server ends while messages are being sent to it: every caller is told why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeAlias

import grpc
import grpc.aio
import pytest

from dovetail.rpc.early_end import true_end

StatusCode = grpc.StatusCode
pytestmark = pytest.mark.timeout(60)
PIECES = 40
REFUSED = (StatusCode.RESOURCE_EXHAUSTED, "over the quota", (("why", "quota"),))
Upload: TypeAlias = "grpc.aio.StreamUnaryMultiCallable[bytes, bytes]"
Exchange: TypeAlias = "grpc.aio.StreamStreamMultiCallable[bytes, bytes]"
End: TypeAlias = "tuple[StatusCode, str | None, tuple[object, ...]]"


async def count(messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    """Counts, but refuses what begins with a "no" as soon as that has come."""
    number = 0
    async for message in messages:
        if message == b"no":
            await context.abort(*REFUSED)
        number += 1
    return str(number).encode()


async def echo(messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
    """Gives back what comes, but refuses as `count` does."""
    async for message in messages:
        if message == b"no":
            await context.abort(*REFUSED)
        yield message


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    handlers = {
        "Count": grpc.stream_unary_rpc_method_handler(count),
        "Echo": grpc.stream_stream_rpc_method_handler(echo),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("early", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield opened
    await server.stop(None)


@pytest.fixture
def upload(channel: grpc.aio.Channel) -> Upload:
    return channel.stream_unary("/early/Count")


@pytest.fixture
def exchange(channel: grpc.aio.Channel) -> Exchange:
    return channel.stream_stream("/early/Echo")


async def pieces(first: bytes) -> AsyncIterator[bytes]:
    yield first
    for _ in range(PIECES):
        await asyncio.sleep(0)
        yield bytes(60_000)


async def reply(call: grpc.aio.StreamUnaryCall[bytes, bytes]) -> bytes:
    with true_end(call):
        return await call


async def replies(call: grpc.aio.StreamStreamCall[bytes, bytes]) -> list[bytes]:
    with true_end(call):
        return [message async for message in call]


async def ends(refused: Callable[[], Coroutine[Any, Any, object]]) -> set[End]:
    """How four hundred calls end, of which ten are under way at once."""

    async def end() -> End:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await refused()
        return caught.value.code(), caught.value.details(), tuple(caught.value.trailing_metadata())

    return {found for _ in range(40) for found in await asyncio.gather(*(end() for _ in range(10)))}


async def test_an_upload_that_is_refused_early_ends_with_the_servers_own_status(upload: Upload) -> None:
    assert await ends(lambda: reply(upload(pieces(b"no")))) == {REFUSED}


async def test_a_stream_that_is_ended_early_ends_with_the_servers_own_status(exchange: Exchange) -> None:
    assert await ends(lambda: replies(exchange(pieces(b"no")))) == {REFUSED}


async def test_calls_that_are_taken_have_their_replies(upload: Upload, exchange: Exchange) -> None:
    assert await reply(upload(pieces(b"yes"))) == str(PIECES + 1).encode()
    assert len(await replies(exchange(pieces(b"yes")))) == PIECES + 1


async def test_an_upload_that_is_given_up_is_cancelled(upload: Upload) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"yes"
        await asyncio.Event().wait()

    call = upload(endless())
    waiting = asyncio.ensure_future(reply(call))
    await call.wait_for_connection()

    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting
