# SPDX-License-Identifier: Apache-2.0
"""The client of a primary that Redis Sentinels watch: each new connection asks them who it is.

Source: redis.io, "Guidelines for Redis clients with support for Redis Sentinel".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redis import exceptions
from redis.asyncio.sentinel import Sentinel

from dovetail.store.redis_address import RedisAddress
from dovetail.store.redis_server import ServerClient


class SentinelClient(ServerClient):
    """A pool of connections to whoever is the primary."""

    watchers: Sentinel

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """As the library's; a primary that became a replica is left, also if only a script noticed."""
        try:
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except exceptions.ResponseError as exc:
            if "READONLY" not in str(exc):
                raise
            await self.connection_pool.disconnect(inuse_connections=False)
            raise exceptions.ReadOnlyError(str(exc)) from None

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the connections to the primary and to the Sentinels."""
        await super().aclose(close_connection_pool)
        await self.watchers.aclose()


def sentinel_client(address: RedisAddress, options: Mapping[str, Any]) -> SentinelClient:
    """A client that has not connected yet."""
    tls: Mapping[str, Any] = {"ssl": True, **address.tls_options} if address.tls else {}
    asking = {name: value for name, value in options.items() if name not in ("max_connections", "socket_timeout")}
    asking["socket_timeout"] = options["socket_connect_timeout"]  # one that hangs must leave time to ask the next
    sentinel = Sentinel(
        address.hosts, sentinel_kwargs={**asking, **address.sentinel_login, **tls}, **address.login, **options, **tls
    )  # type: ignore[no-untyped-call]
    client: SentinelClient = sentinel.master_for(address.service, redis_class=SentinelClient, db=address.db)
    client.watchers = sentinel
    return client
