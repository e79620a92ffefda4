# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio

import pytest
from redis import exceptions

from dovetail.client.async_client import CALL_TIMEOUT_S
from dovetail.errors import DovetailError, InvalidInputError, OverLimitError, UnavailableError
from dovetail.store.redis_connection import (
    ANSWER_TIMEOUT_S,
    MAX_BLOCK_MS,
    SOCKET_TIMEOUT_S,
    connect,
    public_address,
    translate,
)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:secret@db.example:7000/2", "redis://db.example:7000"),
        ("rediss://:secret@db.example", "rediss://db.example:6379"),
        ("redis://", "redis://localhost:6379"),
        ("unix://:secret@/run/redis.sock?db=1", "unix:…/redis.sock"),
    ],
)
def test_an_address_is_shown_without_its_secrets_and_folders(url: str, shown: str) -> None:
    assert public_address(url) == shown


@pytest.mark.parametrize("url", ["", "localhost:6379", "http://x", "unix://", "redis://host:port/0", "redis://[::1"])
def test_what_is_no_redis_address_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(InvalidInputError, match=r"redis://host:6379/0"):
        connect(url)


@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        (exceptions.ConnectionError("Error 111"), UnavailableError, "start it or set DOVETAIL_REDIS_URL"),
        (exceptions.TimeoutError("slow"), UnavailableError, "does not answer"),
        (exceptions.BusyLoadingError("LOADING"), UnavailableError, "still loading"),
        (exceptions.ReadOnlyError("READONLY"), UnavailableError, "read-only replica"),
        (exceptions.MaxConnectionsError("Too many"), UnavailableError, "are in use"),
        (exceptions.ResponseError("MISCONF Redis cannot persist"), UnavailableError, "MISCONF"),
        (exceptions.OutOfMemoryError("OOM"), OverLimitError, "out of memory"),
        (exceptions.ResponseError("ERR in script: -OOM command not allowed"), OverLimitError, "out of memory"),
        (exceptions.ResponseError("WRONGTYPE"), DovetailError, "refused a command"),
    ],
)
def test_every_error_of_the_client_library_becomes_ours(
    error: exceptions.RedisError, expected: type[DovetailError], text: str
) -> None:
    translated = translate(error, "redis://here:6379")

    assert type(translated) is expected
    assert text in str(translated)
    assert "redis://here:6379" in str(translated)


def test_a_blocking_read_ends_before_its_socket_gives_up() -> None:
    assert MAX_BLOCK_MS / 1000 < SOCKET_TIMEOUT_S


async def test_a_command_that_got_no_answer_in_time_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dovetail.store.redis_connection.SOCKET_TIMEOUT_S", 0.2)
    received: list[bytes] = []

    async def frozen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            received.append(data)
            if b"CLIENT" in data:  # the client library introduces itself
                writer.write(b"+OK\r\n" * data.count(b"CLIENT"))
        writer.close()

    async with await asyncio.start_server(frozen, "127.0.0.1", 0) as server:
        connection = connect(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")

        with pytest.raises(UnavailableError, match="does not answer"):
            await connection.call("INCR", "n")
        await connection.aclose()

    assert sum(data.count(b"INCR") for data in received) == 1


async def test_a_server_that_accepts_and_then_says_nothing_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dovetail.store.redis_connection.ANSWER_TIMEOUT_S", 0.2)

    async def frozen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(frozen, "127.0.0.1", 0) as server:
        connection = connect(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")

        async with asyncio.timeout(10):
            with pytest.raises(UnavailableError, match="does not answer"):
                await connection.ping()
        await connection.aclose()


def test_redis_is_given_up_before_the_callers_of_our_services_give_up() -> None:
    assert SOCKET_TIMEOUT_S < ANSWER_TIMEOUT_S < CALL_TIMEOUT_S
