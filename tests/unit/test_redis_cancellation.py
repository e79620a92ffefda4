# SPDX-License-Identifier: Apache-2.0
"""A cancelled command ends as cancelled, also when the client library loses the cancellation."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from redis import exceptions

from dovetail.errors import UnavailableError
from dovetail.store.redis_connection import RedisConnection


class _ForgetfulClient:
    """Does what redis-py 8.1 does while it gives up a broken connection: it catches the cancellation and goes on."""

    def __init__(self) -> None:
        self.waiting = asyncio.Event()

    async def execute_command(self, *parts: object) -> bytes:
        self.waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if parts == ("FAIL",):
                raise exceptions.ConnectionError("gone") from None
        return b"late"


@pytest.mark.parametrize("command", ["PING", "FAIL"])
async def test_cancellation_that_the_library_lost_is_raised(command: str) -> None:
    client = _ForgetfulClient()
    task = asyncio.create_task(RedisConnection(cast(Any, client), "test").call(command))
    await client.waiting.wait()

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_timeout_of_the_caller_is_still_a_timeout() -> None:
    client = _ForgetfulClient()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await RedisConnection(cast(Any, client), "test").call("PING")


class _BrokenClient:
    async def execute_command(self, *parts: object) -> bytes:
        raise exceptions.ConnectionError("gone")


async def test_lost_connection_without_a_cancellation_is_unavailable() -> None:
    with pytest.raises(UnavailableError):
        await RedisConnection(cast(Any, _BrokenClient()), "test").call("PING")
