# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio

import pytest
from redis import exceptions

from dovetail.client.async_client import CALL_TIMEOUT_S
from dovetail.errors import DovetailError, InvalidInputError, OverLimitError, UnavailableError
from dovetail.store.redis_address import RedisAddress
from dovetail.store.redis_connection import (
    ANSWER_TIMEOUT_S,
    MAX_BLOCK_MS,
    SOCKET_TIMEOUT_S,
    RedisConnection,
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
        ("redis://:secret@[::1]:7000", "redis://[::1]:7000"),
        ("redis+sentinel://u:secret@a,b:7000/mesh/1?sentinel_password=hidden", "redis+sentinel://a:26379,b:7000/mesh"),
        ("rediss+cluster://u:se%40cret@a.example,b:7000", "rediss+cluster://a.example:6379,b:7000"),
    ],
)
def test_an_address_is_shown_without_its_secrets_and_folders(url: str, shown: str) -> None:
    assert public_address(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        *("", "localhost:6379", "http://x", "unix://", "redis://host:port/0", "redis://[::1", "redis://host:70000"),
        *("redis://a,b", "redis+sentinel://a", "redis+sentinel://a/mesh/x", "redis+other://a", "redis://a/0/1"),
    ],
)
def test_what_is_no_redis_address_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(InvalidInputError, match=r"redis://host:6379/0"):
        connect(url)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis+cluster://:secret@a/1", "a cluster has only database 0"),
        ("redis://:secret@a?timeout=3", "unknown option 'timeout'"),
        ("redis://:secret@a?ssl_ca_certs=x", "need rediss://"),
        ("rediss://:secret@a?ssl_ca_certs=/no/such/file", "the file that ssl_ca_certs of rediss://a:6379 names"),
        ("rediss://:secret@a?ssl_check_hostname=perhaps", "use one of 1, true"),
        ("redis://:secret@a?sentinel_password=hidden", "unknown option 'sentinel_password'"),
    ],
)
def test_what_an_address_cannot_have_is_said_without_its_secrets(url: str, text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        connect(url)

    assert text in str(caught.value)
    assert not {"secret", "/no/such/file", "hidden"} & set(str(caught.value).split())


def test_all_parts_of_an_address_are_read() -> None:
    address = RedisAddress.parse("redis+sentinel://me:a%2Fb@h1,[::1]:7/svc/3?sentinel_username=s&sentinel_password=p")

    assert address.hosts == (("h1", 26379), ("::1", 7))
    assert (address.service, address.db, address.tls) == ("svc", 3, False)
    assert address.login == {"username": "me", "password": "a/b"}
    assert address.sentinel_login == {"username": "s", "password": "p"}
    assert "a/b" not in repr(address)


async def test_a_replica_that_only_a_script_noticed_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[bool] = []

    async def refuse(*_: object) -> None:
        raise exceptions.ResponseError("Error running script: @user_script: 3: -READONLY You can't write against")

    async def disconnect(inuse_connections: bool = True) -> None:
        left.append(inuse_connections)

    connection = connect("redis+sentinel://127.0.0.1:1/mesh")
    monkeypatch.setattr("redis.asyncio.Redis.execute_command", refuse)
    monkeypatch.setattr(connection._client.connection_pool, "disconnect", disconnect)  # type: ignore[attr-defined]

    with pytest.raises(UnavailableError, match="is a read-only replica"):
        await connection.call("EVALSHA")
    monkeypatch.undo()
    await connection.aclose()

    assert left == [False]


async def test_a_connection_that_is_held_refuses_with_the_reason_and_then_goes_on(redis: RedisConnection) -> None:
    redis.hold("wrong policy")
    with pytest.raises(UnavailableError, match="^wrong policy$"):
        await redis.ping()
    assert await redis.infos()

    redis.hold(None)
    await redis.ping()


@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        (exceptions.ConnectionError("Error 111"), UnavailableError, "start it or set DOVETAIL_REDIS_URL"),
        (exceptions.TimeoutError("slow"), UnavailableError, "does not answer"),
        (exceptions.BusyLoadingError("LOADING"), UnavailableError, "still loading"),
        (exceptions.ReadOnlyError("READONLY"), UnavailableError, "read-only replica"),
        (exceptions.MaxConnectionsError("Too many"), UnavailableError, "are in use"),
        (exceptions.NoPermissionError("NOPERM no x"), UnavailableError, "forbids that to our user (NOPERM no x)"),
        (
            exceptions.ResponseError("ERR ACL failure in script: no x"),
            UnavailableError,
            "correct the rights in its ACL",
        ),
        (exceptions.ResponseError("WRONGPASS"), UnavailableError, "user or password: correct DOVETAIL_REDIS_URL"),
        (exceptions.MovedError("1 h:1"), UnavailableError, "is a node of a cluster"),
        (exceptions.RedisClusterException("cannot be connected"), UnavailableError, "does not answer"),
        (exceptions.ClusterDownError("CLUSTERDOWN The cluster is down"), UnavailableError, "cannot serve now"),
        (exceptions.ResponseError("MISCONF Redis cannot persist"), UnavailableError, "MISCONF"),
        (
            exceptions.ResponseError("Error running script : @user_script: 9: -NOREPLICAS x"),
            UnavailableError,
            "cannot serve now (NOREPLICAS x)",
        ),
        (exceptions.OutOfMemoryError("OOM"), OverLimitError, "out of memory"),
        (exceptions.ResponseError("ERR in script: -OOM command not allowed"), OverLimitError, "out of memory"),
        (exceptions.ResponseError("WRONGTYPE"), DovetailError, "refused a command"),
    ],
)
def test_every_error_of_the_client_library_becomes_ours(
    error: Exception, expected: type[DovetailError], text: str
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
