# SPDX-License-Identifier: Apache-2.0
"""The client of a Redis cluster: the library finds the node of each key and follows slots that move.

Commands without a key go to the node of one slot, that of the control keys, because their answers (the time, whether it
answers) are wanted from there.

Source: redis.io, "Redis cluster specification", redirection and resharding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redis.asyncio.cluster import ClusterNode, RedisCluster

from dovetail.store.redis_address import RedisAddress

_KEYLESS = ("PING", "TIME")


class ClusterClient(RedisCluster):
    """Pools of connections to all nodes of a cluster."""

    home_key: str

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """As the library's, with one node for a command without a key."""
        if args[0] in _KEYLESS and "target_nodes" not in options:
            await self.initialize()
            options["target_nodes"] = self.get_node_from_key(self.home_key)
        return await super().execute_command(*args, **options)

    async def infos(self, section: str) -> Mapping[str, Mapping[str, Any]]:
        """What INFO says, by node; replicas too, because any of them may take over."""
        await self.initialize()
        return {node.name: await self.execute_command("INFO", section, target_nodes=node) for node in self.get_nodes()}


def cluster_client(address: RedisAddress, options: Mapping[str, Any], home_key: str) -> ClusterClient:
    """A client that has not connected yet."""
    named: Mapping[str, Any] = {**address.login, **address.tls_options, **options}
    client = ClusterClient(
        startup_nodes=[ClusterNode(host, port) for host, port in address.hosts], ssl=address.tls, **named
    )
    client.home_key = home_key
    return client
