# SPDX-License-Identifier: Apache-2.0
"""Figures of the hot tier, from what its servers say about themselves. It may be away: then that is the figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dovetail.errors import DovetailError
from dovetail.store.redis_connection import RedisConnection


@dataclass(frozen=True, slots=True)
class HotFigures:
    """All servers of the hot tier together.

    Attributes:
        address: Without user and password.
        chunks: Keys with a time to live, which only chunks have.
        used_memory_bytes: Of the whole servers.
        max_memory_bytes: 0: no limit.
        policy: What they do when it is reached.
        evicted_keys: Since they started; so the next two.
        hits: Reads of any key that found it.
        misses: Reads that did not.
        unavailable: Why there are no figures; "" if there are.
    """

    address: str
    chunks: int = 0
    used_memory_bytes: int = 0
    max_memory_bytes: int = 0
    policy: str = ""
    evicted_keys: int = 0
    hits: int = 0
    misses: int = 0
    unavailable: str = ""


async def hot_figures(redis: RedisConnection) -> HotFigures:
    """Ask the servers; never fails."""
    try:
        infos = tuple((await redis.infos()).values())
    except DovetailError as exc:
        return HotFigures(redis.address, unavailable=str(exc))
    return HotFigures(
        redis.address,
        chunks=sum(_volatile_keys(info) for info in infos),
        used_memory_bytes=_sum(infos, "used_memory"),
        max_memory_bytes=_sum(infos, "maxmemory"),
        policy=", ".join(sorted({str(info.get("maxmemory_policy", "")) for info in infos})),
        evicted_keys=_sum(infos, "evicted_keys"),
        hits=_sum(infos, "keyspace_hits"),
        misses=_sum(infos, "keyspace_misses"),
    )


def _sum(infos: Iterable[Mapping[str, Any]], name: str) -> int:
    return sum(int(info.get(name, 0)) for info in infos)


def _volatile_keys(info: Mapping[str, Any]) -> int:
    """Source: INFO keyspace, "db<n>:keys=<k>,expires=<e>,..."."""
    databases = (value for name, value in info.items() if name.startswith("db") and isinstance(value, Mapping))
    return sum(int(database.get("expires", 0)) for database in databases)
