# SPDX-License-Identifier: Apache-2.0
"""The client of one Redis server, over TCP, TLS or a unix socket."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import redis.asyncio as aioredis

from dovetail.store.redis_address import RedisAddress


class ServerClient(aioredis.Redis):
    """A pool of connections to one server."""

    async def infos(self, section: str) -> Mapping[str, Mapping[str, Any]]:
        """What INFO says, by server."""
        return {"": await self.execute_command("INFO", section)}  # type: ignore[no-untyped-call]


def server_client(address: RedisAddress, options: Mapping[str, Any]) -> ServerClient:
    """A client that has not connected yet."""
    login: Mapping[str, Any] = {**address.login, "db": address.db, **options}
    if address.path:
        return ServerClient(unix_socket_path=address.path, **login)
    host, port = address.hosts[0]
    return ServerClient(host=host, port=port, ssl=address.tls, **address.tls_options, **login)
