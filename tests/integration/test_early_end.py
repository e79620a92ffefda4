# SPDX-License-Identifier: Apache-2.0
"""Uploads that a real server refuses while they are being sent: every one of them is told why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeAlias

import grpc
import grpc.aio
import pytest

from dovetail.rpc.early_end import reply_of

StatusCode = grpc.StatusCode
pytestmark = pytest.mark.timeout(60)
PIECES = 40
Upload: TypeAlias = "grpc.aio.StreamUnaryMultiCallable[bytes, bytes]"


async def serve(messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    """Counts, but refuses what begins with a "no" as soon as that has come."""
    count = 0
    async for message in messages:
        if message == b"no":
            await context.abort(StatusCode.RESOURCE_EXHAUSTED, "over the quota", (("why", "quota"),))
        count += 1
    return str(count).encode()


@pytest.fixture
async def upload() -> AsyncIterator[Upload]:
    server = grpc.aio.server()
    handler = grpc.stream_unary_rpc_method_handler(serve)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("uploads", {"Upload": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel.stream_unary("/uploads/Upload")
    await server.stop(None)


async def pieces(first: bytes) -> AsyncIterator[bytes]:
    yield first
    for _ in range(PIECES):
        await asyncio.sleep(0)
        yield bytes(60_000)


async def test_an_upload_that_is_refused_early_ends_with_the_servers_own_status(upload: Upload) -> None:
    async def told() -> tuple[StatusCode, str | None, tuple[object, ...]]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await reply_of(upload(pieces(b"no")))
        return caught.value.code(), caught.value.details(), tuple(caught.value.trailing_metadata())

    ends = {end for _ in range(40) for end in await asyncio.gather(*(told() for _ in range(10)))}

    assert ends == {(StatusCode.RESOURCE_EXHAUSTED, "over the quota", (("why", "quota"),))}


async def test_an_upload_that_is_taken_has_its_reply(upload: Upload) -> None:
    assert await reply_of(upload(pieces(b"yes"))) == str(PIECES + 1).encode()


async def test_an_upload_that_is_given_up_is_cancelled(upload: Upload) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"yes"
        await asyncio.Event().wait()

    call = upload(endless())
    waiting = asyncio.ensure_future(reply_of(call))
    await call.wait_for_connection()

    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting
