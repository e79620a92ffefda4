# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from redis import exceptions

from dovetail.errors import DovetailError, InvalidInputError, OverLimitError, UnavailableError
from dovetail.store.redis_connection import MAX_BLOCK_MS, SOCKET_TIMEOUT_S, connect, public_address, translate


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:secret@db.example:7000/2", "redis://db.example:7000"),
        ("rediss://:secret@db.example", "rediss://db.example:6379"),
        ("redis://", "redis://localhost:6379"),
        ("unix://:secret@/run/redis.sock?db=1", "unix:///run/redis.sock"),
    ],
)
def test_an_address_is_shown_without_its_secrets(url: str, shown: str) -> None:
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
