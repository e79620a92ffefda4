# SPDX-License-Identifier: Apache-2.0
"""Faults of META that are no death: it stalls, it is short of memory, it comes back without its data."""

from __future__ import annotations

import asyncio
import random

from dovetail.store.redis_connection import Reply, connect
from tests.faults.mesh import LEASE_S, FaultMesh
from tests.faults.redis_process import RedisProcess

STALLS = ("pause", "sleep", "freeze")


async def command(server: RedisProcess, *parts: str | int) -> Reply:
    """Ask a server something directly."""
    connection = connect(server.url)
    try:
        return await connection.call(*parts)
    finally:
        await connection.aclose()


async def used_bytes(server: RedisProcess) -> int:
    return int((await command(server, "INFO", "memory"))["used_memory"])


async def stall(mesh: FaultMesh, rng: random.Random, kind: str = "") -> None:
    """META does not answer for up to two leases."""
    kind, seconds = kind or rng.choice(STALLS), rng.uniform(0.5, 1.9) * LEASE_S
    mesh.ledger.kills[f"meta {kind}"] += 1
    if kind == "pause":
        await command(mesh.meta, "CLIENT", "PAUSE", int(seconds * 1000))
    elif kind == "sleep":
        await command(mesh.meta, "DEBUG", "SLEEP", f"{seconds:.3f}")
    else:
        mesh.meta.freeze()
        await asyncio.sleep(seconds)
        mesh.meta.thaw()


async def short_of_memory(mesh: FaultMesh, rng: random.Random) -> None:
    """META refuses writes that need memory, for a moment."""
    mesh.ledger.kills["meta out of memory"] += 1
    await command(mesh.meta, "CONFIG", "SET", "maxmemory", await used_bytes(mesh.meta))
    await asyncio.sleep(rng.uniform(0.1, 0.5))  # the length of the fault
    await command(mesh.meta, "CONFIG", "SET", "maxmemory", 0)


async def empty(mesh: FaultMesh, rng: random.Random, kind: str = "") -> None:
    """META loses everything, by a restart without its data or by FLUSHALL."""
    kind = kind or rng.choice(("restart", "flushall"))
    mesh.ledger.kills[f"meta emptied by {kind}"] += 1
    if kind == "flushall":
        await command(mesh.meta, "FLUSHALL")
        await command(mesh.blob, "FLUSHALL")
    else:
        await mesh.meta.kill()
        mesh.meta.lose_everything()
        await mesh.meta.start()
