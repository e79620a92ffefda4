# SPDX-License-Identifier: Apache-2.0
"""The only door to Redis: connecting, timeouts, retries, scripts, and one translation of its errors into ours.

Everything else that keeps something in Redis is handed a `RedisConnection` and sees replies or `dovetail.errors`, never
an exception of the client library. What is kept under which key is not this file's business.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import redis.asyncio as aioredis
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

from dovetail.errors import DovetailError, InvalidInputError, OverLimitError, UnavailableError

Reply: TypeAlias = Any
"""What Redis answers: bytes, int, None, and lists and dicts of them; the caller knows the command and so the shape."""

Part: TypeAlias = bytes | str | int | float
"""One word of a command."""

MAX_BLOCK_MS = 5000
"""Longest wait that a blocking command may ask of the server; see SOCKET_TIMEOUT_S."""

SOCKET_TIMEOUT_S = 3 * MAX_BLOCK_MS / 1000
"""redis-py 8 sets 5 s by default, which ends a blocking read of 5 s with an error. Three times the longest block."""

ANSWER_TIMEOUT_S = 20.0
"""Longest wait for an answer, with connecting and greeting a server that may hang in each: the callers of our services
give up after 30 s, and must hear by then that it is Redis that does not answer."""

CONNECT_TIMEOUT_S = 3.0
READ_BYTES = 1 << 20  # a chunk at once: reading chunks is a fifth faster than with the default of 32 KiB
RETRIES = 3  # 50 ms to 500 ms apart with jitter: rides over a fail-over of the socket, not over an outage
MAX_CONNECTIONS = 512  # each waiting claim and watch holds one

# Errors whose text starts with one of these end when Redis recovers; the client library has no class for all of them.
_TEMPORARY = ("MISCONF", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "LOADING", "READONLY", "BUSY")
_REFUSED = ("NOAUTH", "WRONGPASS", "NOPERM")


@dataclass(frozen=True, slots=True)
class LuaScript:
    """A script that Redis runs as one step.

    Attributes:
        text: Lua source.
        sha1: Name under which Redis remembers it (an identifier, not a protection).
    """

    text: str
    sha1: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha1", hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest())


class RedisConnection:
    """A pool of connections to one server; safe to share between tasks of one event loop."""

    def __init__(self, client: aioredis.Redis, address: str) -> None:
        self._client = client
        self.address = address

    async def call(self, *parts: Part) -> Reply:
        """Run one command.

        Raises:
            UnavailableError: Redis does not answer, is loading, or refuses us for now.
            OverLimitError: Redis is out of memory.
        """
        async with self._answered():
            return await self._client.execute_command(*parts)  # type: ignore[no-untyped-call]

    async def call_all(self, commands: Sequence[Sequence[Part]]) -> list[Reply]:
        """Run commands in one round trip, not as one step; the replies in order. Raises as `call`."""
        if not commands:
            return []
        async with self._answered(), self._client.pipeline(transaction=False) as pipeline:
            for parts in commands:
                pipeline.execute_command(*parts)
            return await pipeline.execute()

    async def run(self, script: LuaScript, key: str, *arguments: Part) -> Reply:
        """Run a script as one step; `key` names the slot that everything it touches lives in. Raises as `call`."""
        async with self._answered():
            try:
                return await self._client.execute_command("EVALSHA", script.sha1, 1, key, *arguments)  # type: ignore[no-untyped-call]
            except exceptions.NoScriptError:  # first use, or Redis was restarted
                return await self._client.execute_command("EVAL", script.text, 1, key, *arguments)  # type: ignore[no-untyped-call]

    async def ping(self) -> None:
        """Check that Redis answers. Raises as `call`."""
        await self.call("PING")

    async def aclose(self) -> None:
        """Close all connections; waiting commands end with UnavailableError."""
        await self._client.aclose()

    @asynccontextmanager
    async def _answered(self) -> AsyncIterator[None]:
        task = asyncio.current_task()
        cancels = task.cancelling() if task is not None else 0
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                yield
        except TimeoutError as exc:
            raise translate(exceptions.TimeoutError(), self.address) from exc
        except exceptions.RedisError as exc:
            raise translate(exc, self.address) from exc
        finally:
            # The client library loses a cancellation that comes while it gives up a broken connection (redis-py 8.1),
            # and who cancelled then waits for ever.
            if task is not None and task.cancelling() > cancels:
                raise asyncio.CancelledError


def connect(url: str) -> RedisConnection:
    """Prepare a connection; nothing is sent before the first command, so a server that is down is not an error here.

    Args:
        url: redis://, rediss:// (TLS) or unix:// address, with user and password if needed.

    Raises:
        InvalidInputError: Not such an address.
    """
    address = public_address(url)
    try:
        client = aioredis.Redis.from_url(
            url,
            protocol=2,  # replies have one shape with every version of server and client library
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_read_size=READ_BYTES,
            max_connections=MAX_CONNECTIONS,
            # A command whose answer did not come in time may have run, and its caller has waited long enough.
            retry=Retry(
                ExponentialWithJitterBackoff(cap=0.5, base=0.05),
                RETRIES,
                supported_errors=(exceptions.ConnectionError,),
            ),
        )
    except ValueError as exc:
        raise InvalidInputError(f"Redis address {address} is not readable: {exc}") from exc
    return RedisConnection(client, address)


def public_address(url: str) -> str:
    """The address without user, password and folders, fit for messages.

    Raises:
        InvalidInputError: Not a redis://, rediss:// or unix:// address.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise InvalidInputError("the Redis address is not a URL: use redis://host:6379/0 or unix:///path") from exc
    if parts.scheme == "unix" and parts.path:
        return f"unix:…/{PurePosixPath(parts.path).name}"
    if parts.scheme in ("redis", "rediss"):
        return f"{parts.scheme}://{parts.hostname or 'localhost'}:{port or 6379}"
    raise InvalidInputError(
        f"a Redis address cannot start with {parts.scheme!r}: use redis://host:6379/0 or unix:///path"
    )


def translate(error: exceptions.RedisError, address: str) -> DovetailError:
    """Our error for one of the client library's."""
    while isinstance(error.__cause__, exceptions.RedisError):  # while it connects, the library hides why in the cause
        error = error.__cause__
    text = str(error)
    if isinstance(error, exceptions.OutOfMemoryError) or "OOM command not allowed" in text:
        return OverLimitError(f"Redis at {address} is out of memory: raise its maxmemory or delete models")
    if isinstance(error, exceptions.AuthenticationError | exceptions.NoPermissionError) or text.startswith(_REFUSED):
        return UnavailableError(f"Redis at {address} refuses our user or password: correct DOVETAIL_REDIS_URL")
    if isinstance(error, exceptions.MaxConnectionsError):
        return UnavailableError(f"all {MAX_CONNECTIONS} connections to Redis at {address} are in use; try again later")
    if isinstance(error, exceptions.ReadOnlyError) or text.startswith("READONLY"):
        return UnavailableError(f"Redis at {address} is a read-only replica: set DOVETAIL_REDIS_URL to the primary")
    if isinstance(error, exceptions.BusyLoadingError):
        return UnavailableError(f"Redis at {address} is still loading its data; try again in a few seconds")
    if isinstance(error, exceptions.ConnectionError | exceptions.TimeoutError):
        return UnavailableError(f"Redis at {address} does not answer; start it or set DOVETAIL_REDIS_URL")
    if text.startswith(_TEMPORARY):
        return UnavailableError(f"Redis at {address} cannot serve now ({text[:200]}); try again when it has recovered")
    return DovetailError(f"Redis at {address} refused a command: {text[:200]}")
