# SPDX-License-Identifier: Apache-2.0
"""The only door to Redis: timeouts, retries, scripts, and one translation of its errors into ours.

Everything else that keeps something in Redis is handed a `RedisConnection` and sees replies or `dovetail.errors`, never
an exception of the client library. What is kept under which key is not this file's business; nor how an address is
read (`redis_address`) and a client made for it (`redis_server`, `redis_sentinel`, `redis_cluster`).
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

from dovetail.errors import DovetailError, OverLimitError, UnavailableError, brief
from dovetail.store.redis_address import RedisAddress, RedisKind, public_address
from dovetail.store.redis_cluster import cluster_client
from dovetail.store.redis_sentinel import sentinel_client
from dovetail.store.redis_server import server_client

__all__ = ["LuaScript", "Part", "RedisConnection", "Reply", "connect", "public_address", "translate"]

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
_REFUSED = ("NOAUTH", "WRONGPASS")
_FORBIDDEN = ("NOPERM", "ACL failure")  # the second: of a command in a script, since Redis 7
_IN_SCRIPT = re.compile(r"^Error running script .*?: -?(?=[A-Z]+ )")  # so Redis 6.2 quotes a command's own error
_FAILURES = (exceptions.RedisError, exceptions.RedisClusterException)


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


class RedisClient(Protocol):
    """What is used of the client library."""

    async def execute_command(self, *args: Any) -> Any:
        """Run one command."""
        ...

    def pipeline(self, transaction: bool) -> Any:
        """Several commands in one round trip to each server."""
        ...

    async def infos(self, section: str) -> Mapping[str, Mapping[str, Any]]:
        """What INFO says, by server; of one section or "default"."""
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...


class RedisConnection:
    """A pool of connections to one server, primary or cluster; safe to share between tasks of one event loop.

    Attributes:
        address: Where it is, fit for messages.
        setting: The variable that says so.
        back: Set when Redis answers again after it did not; whoever waits for it clears it.
    """

    def __init__(self, client: RedisClient, address: str, *, setting: str = "DOVETAIL_REDIS_URL") -> None:
        self._client = client
        self.address = address
        self.setting = setting
        self.back = asyncio.Event()
        self._lost = False
        self._held: str | None = None

    async def call(self, *parts: Part) -> Reply:
        """Run one command.

        Raises:
            UnavailableError: Redis does not answer, is loading, or refuses us for now.
            OverLimitError: Redis is out of memory.
        """
        async with self._answered():
            return await self._client.execute_command(*parts)

    async def call_all(self, commands: Sequence[Sequence[Part]]) -> list[Reply]:
        """Run commands in one round trip to each server, not as one step; the replies in order. Raises as `call`."""
        if not commands:
            return []
        async with self._answered(), self._client.pipeline(transaction=False) as pipeline:
            for parts in commands:
                pipeline.execute_command(*parts)
            return list(await pipeline.execute())

    async def run(self, script: LuaScript, key: str, *arguments: Part) -> Reply:
        """Run a script as one step; `key` names the slot that everything it touches lives in. Raises as `call`."""
        async with self._answered():
            try:
                return await self._client.execute_command("EVALSHA", script.sha1, 1, key, *arguments)
            except exceptions.NoScriptError:  # first use, or Redis was restarted
                return await self._client.execute_command("EVAL", script.text, 1, key, *arguments)

    async def ping(self) -> None:
        """Check that Redis answers. Raises as `call`."""
        await self.call("PING")

    async def infos(self, section: str = "default") -> Mapping[str, Mapping[str, Any]]:
        """What each server says about itself (INFO), also while the connection is held. Raises as `call`."""
        async with self._answered(held=False):
            return await self._client.infos(section)

    async def run_id(self) -> str:
        """Another text after any server was started again, when it may have lost what it had acknowledged last."""
        servers = await self.infos("server")  # a tenth of the whole, and it is asked for by every publish
        return ",".join(sorted(str(info.get("run_id", "")) for info in servers.values()))

    def hold(self, why: str | None) -> None:
        """Treat Redis as unavailable, with this reason, until called with None: it answers, but must not be used."""
        self._held = why

    async def aclose(self) -> None:
        """Close all connections; waiting commands end with UnavailableError."""
        await self._client.aclose()

    @asynccontextmanager
    async def _answered(self, *, held: bool = True) -> AsyncIterator[None]:
        if held and self._held is not None:
            raise UnavailableError(self._held)
        task = asyncio.current_task()
        cancels = task.cancelling() if task is not None else 0
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                yield
            self._answers()
        except TimeoutError as exc:
            self._lost = True
            raise translate(exceptions.TimeoutError(), self.address, setting=self.setting) from exc
        except _FAILURES as exc:
            self._lost = self._lost or isinstance(exc, exceptions.ConnectionError | exceptions.TimeoutError)
            raise translate(exc, self.address, setting=self.setting) from exc
        finally:
            # The client library loses a cancellation that comes while it gives up a broken connection (redis-py 8.1),
            # and who cancelled then waits for ever.
            if task is not None and task.cancelling() > cancels:
                raise asyncio.CancelledError

    def _answers(self) -> None:
        if self._lost:
            self._lost = False
            self.back.set()


def connect(url: str, *, setting: str = "DOVETAIL_REDIS_URL", home_key: str = "") -> RedisConnection:
    """Prepare a connection; nothing is sent before the first command, so a server that is down is not an error here.

    Args:
        url: See `redis_address`.
        setting: The variable that it comes from, for messages.
        home_key: Any key of the slot that commands without a key are asked of, in a cluster.

    Raises:
        InvalidInputError: Not such an address.
    """
    address = RedisAddress.parse(url)
    client: Any
    if address.kind is RedisKind.CLUSTER:
        client = cluster_client(address, _options(), home_key)
    elif address.kind is RedisKind.SENTINEL:
        client = sentinel_client(address, _options())
    else:
        client = server_client(address, _options())
    return RedisConnection(client, address.public, setting=setting)


def _options() -> dict[str, Any]:
    return {
        "protocol": 2,  # replies have one shape with every version of server and client library
        "socket_timeout": SOCKET_TIMEOUT_S,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_read_size": READ_BYTES,
        "max_connections": MAX_CONNECTIONS,
        # A command whose answer did not come in time may have run, and its caller has waited long enough.
        "retry": Retry(
            ExponentialWithJitterBackoff(cap=0.5, base=0.05),
            RETRIES,
            supported_errors=(exceptions.ConnectionError,),
        ),
    }


def translate(error: Exception, address: str, *, setting: str = "DOVETAIL_REDIS_URL") -> DovetailError:
    """Our error for one of the client library's."""
    where = f"Redis at {address}"
    while isinstance(error.__cause__, exceptions.RedisError):  # while it connects, the library hides why in the cause
        error = error.__cause__
    text = _IN_SCRIPT.sub("", str(error))
    if isinstance(error, exceptions.OutOfMemoryError) or "OOM command not allowed" in text:
        return OverLimitError(f"{where} is out of memory: raise its maxmemory or delete models")
    if isinstance(error, exceptions.NoPermissionError) or any(word in text for word in _FORBIDDEN):
        return UnavailableError(f"{where} forbids that to our user ({brief(text, 200)}): correct the rights in its ACL")
    if isinstance(error, exceptions.AuthenticationError) or text.startswith(_REFUSED):
        return UnavailableError(f"{where} refuses our user or password: correct {setting}")
    if isinstance(error, exceptions.MaxConnectionsError):
        return UnavailableError(f"all {MAX_CONNECTIONS} connections to Redis at {address} are in use; try again later")
    if isinstance(error, exceptions.ReadOnlyError) or text.startswith("READONLY"):
        return UnavailableError(f"{where} is a read-only replica: set {setting} to the primary")
    if isinstance(error, exceptions.BusyLoadingError):
        return UnavailableError(f"{where} is still loading its data; try again in a few seconds")
    if "Cluster mode is not enabled" in text or "cluster support disabled" in text:
        return UnavailableError(f"{where} is not a cluster: set {setting} to redis://host:port")
    if isinstance(error, exceptions.AskError):  # and its child, MovedError
        return UnavailableError(f"{where} is a node of a cluster: set {setting} to redis+cluster://host:port")
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError):
            return UnavailableError(f"TLS with {where} fails ({brief(str(cause), 200)}): correct {setting}")
    if isinstance(error, exceptions.ConnectionError | exceptions.TimeoutError | exceptions.RedisClusterException):
        return UnavailableError(f"{where} does not answer; start it or set {setting}")
    if text.startswith(_TEMPORARY):
        return UnavailableError(f"{where} cannot serve now ({text[:200]}); try again when it has recovered")
    return DovetailError(f"{where} refused a command: {text[:200]}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
