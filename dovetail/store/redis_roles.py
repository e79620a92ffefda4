# SPDX-License-Identifier: Apache-2.0
"""What a Redis must be set to for what it keeps, and how we find out.

Two roles: META keeps the index and the jobs, which must never be evicted; BLOB keeps copies of chunks, which may be
evicted at any time. One server may have both if only what has a time to live is evicted: that are the chunks. A wrong
eviction policy loses jobs silently, so it refuses the start; what only costs speed or comfort is a warning.

Everything is read from INFO, which managed services allow where they deny CONFIG.

Source: redis.io, "Key eviction" (policies), "Redis persistence" (AOF), "Redis replication" (why a primary without
persistence must not restart by itself; min-replicas-to-write).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dovetail.errors import PreconditionError
from dovetail.store.redis_connection import RedisConnection

MIN_VERSION = (6, 2)
"""Oldest server that has all commands we use (GETEX, XRANGE with exclusive ids: 6.2)."""

ALONE = ("noeviction",)
SHARED = ("noeviction", "volatile-lfu", "volatile-lru", "volatile-random", "volatile-ttl")

Info = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Findings:
    """What is wrong with the servers of a role.

    Attributes:
        refusals: Reasons not to use them, fit to show; empty if they are right.
        warnings: What will hurt but not lose what was promised.
    """

    refusals: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise PreconditionError with all refusals, if there are any."""
        if self.refusals:
            raise PreconditionError("; ".join(self.refusals))


async def inspect_meta(redis: RedisConnection, *, shared: bool) -> Findings:
    """Look at the servers of index and jobs.

    Args:
        redis: Where they are.
        shared: Whether they keep chunks too.

    Raises:
        UnavailableError: Redis does not answer.
    """
    refusals: list[str] = []
    warnings: list[str] = []
    for where, info in (await _infos(redis)).items():
        refusals += _too_old(where, info)
        refusals += _wrong_policy(where, info, shared=shared)
        warnings += _meta_warnings(where, info, shared=shared)
    return Findings(tuple(refusals), tuple(warnings))


async def inspect_blob(redis: RedisConnection) -> Findings:
    """Look at the servers of the chunks' copies. Raises as `inspect_meta`."""
    refusals: list[str] = []
    warnings: list[str] = []
    for where, info in (await _infos(redis)).items():
        refusals += _too_old(where, info)
        warnings += _blob_warnings(where, info)
    return Findings(tuple(refusals), tuple(warnings))


async def same_server(one: RedisConnection, other: RedisConnection) -> bool:
    """True if two addresses lead to one server (two databases of it, or two names). Raises as `inspect_meta`."""
    runs = [{info.get("run_id") for info in (await _infos(redis)).values()} for redis in (one, other)]
    return bool(runs[0] & runs[1] - {None})


async def _infos(redis: RedisConnection) -> Mapping[str, Info]:
    infos = await redis.infos()
    return {f"Redis at {redis.address}" + (f" (node {name})" if name else ""): info for name, info in infos.items()}


def _too_old(where: str, info: Info) -> Iterator[str]:
    text = str(info.get("redis_version", "unknown"))
    numbers = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    if numbers < MIN_VERSION:
        need = ".".join(map(str, MIN_VERSION))
        yield f"{where} has version {text}: Redis {need} or Valkey 7.2 is the oldest that works; upgrade it"


def _wrong_policy(where: str, info: Info, *, shared: bool) -> Iterator[str]:
    policy = info.get("maxmemory_policy", "unknown")
    if shared and policy not in SHARED:
        yield (
            f"{where} has maxmemory-policy {policy}, which may evict the index and the jobs: set volatile-lfu (only "
            "chunks have a time to live), or give chunks a server of their own with DOVETAIL_BLOB_REDIS_URL"
        )
    elif not shared and policy not in ALONE:
        yield (
            f"{where} has maxmemory-policy {policy}, but it keeps the index and the jobs, of which nothing may be "
            "evicted: set noeviction (CONFIG SET maxmemory-policy noeviction, and in redis.conf)"
        )


def _meta_warnings(where: str, info: Info, *, shared: bool) -> Iterator[str]:
    if not info.get("aof_enabled"):
        yield f"{where} has no append-only file: a restart of it loses queued builds; set appendonly yes"
    if info.get("connected_slaves") and "min_slaves_good_slaves" not in info:
        yield f"{where} has replicas but takes writes that none of them gets: set min-replicas-to-write 1"
    if shared and not info.get("maxmemory"):
        yield f"{where} keeps chunks without a limit: set maxmemory, and maxmemory-policy volatile-lfu"
    elif shared and info.get("maxmemory_policy") == "noeviction":
        yield f"{where} never evicts chunks, and refuses builds when they fill it: set maxmemory-policy volatile-lfu"


def _blob_warnings(where: str, info: Info) -> Iterator[str]:
    if info.get("aof_enabled") or info.get("rdb_last_bgsave_time_sec", -1) != -1:
        yield f"{where} writes chunks to its disk, where the durable tier has them: set appendonly no and save ''"
    if info.get("connected_slaves") or info.get("role") == "slave":
        yield f"{where} copies chunks to replicas, which only costs: give it none"
    if not info.get("maxmemory"):
        yield f"{where} keeps chunks without a limit: set maxmemory to at most 60 % of its machine's memory"
    elif info.get("maxmemory_policy") == "noeviction":
        yield f"{where} is set to noeviction and stays full of old chunks: set maxmemory-policy allkeys-lfu"
