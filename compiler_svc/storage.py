# SPDX-License-Identifier: Apache-2.0
"""Puts the stores together as the compiler service and its workers use them; nowhere else are their classes named."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

from compiler_svc.index import Index
from compiler_svc.jobs.base import JobQueue
from compiler_svc.jobs.redis_jobs import RedisJobQueue
from compiler_svc.kept_files import KeptFiles
from compiler_svc.redis_index import RedisIndex
from compiler_svc.shared_settings import StoreSettings
from compiler_svc.waiting import WaitingOrders
from dovetail.errors import UnavailableError
from dovetail.store.base import ChunkStore
from dovetail.store.disk import DiskChunkStore, DiskDocumentStore
from dovetail.store.redis_chunks import RedisChunkStore
from dovetail.store.redis_connection import RedisConnection, connect
from dovetail.store.tiered import TieredChunkStore
from dovetail.store.verified import VerifiedChunkStore

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Storage:
    """Everything that outlives a process.

    Attributes:
        redis: The connection below index, jobs and hot chunks.
        chunks: Hot tier over durable tier, both checked.
        index: What exists.
        jobs: What is to be built.
        kept: What builds keep for later ones.
        waiting: Orders that no live worker covers.
    """

    redis: RedisConnection
    chunks: ChunkStore
    index: Index
    jobs: JobQueue
    kept: KeptFiles
    waiting: WaitingOrders


def open_storage(settings: StoreSettings, *, lease_s: float = 60.0) -> Storage:
    """Put the stores together; nothing is contacted yet.

    Raises:
        InvalidInputError: The Redis address is malformed.
    """
    redis = connect(settings.redis_url)
    documents = DiskDocumentStore(settings.blob_dir)
    hot = VerifiedChunkStore(RedisChunkStore(redis), name="redis")
    durable = VerifiedChunkStore(DiskChunkStore(settings.blob_dir), name="disk")
    index, jobs = RedisIndex(redis, documents), RedisJobQueue(redis, documents, lease_s=lease_s)
    return Storage(
        redis=redis,
        chunks=TieredChunkStore(hot, durable),
        index=index,
        jobs=jobs,
        kept=KeptFiles(documents),
        waiting=WaitingOrders(documents, index, jobs),
    )


async def wait_for_redis(redis: RedisConnection, stop: asyncio.Event, *, wait_s: float, pause_s: float = 1.0) -> bool:
    """Wait until Redis answers, saying so once; nothing else orders the start of our processes.

    Returns:
        True if it answers, False if `stop` was set first.

    Raises:
        UnavailableError: It did not answer within `wait_s`.
    """
    deadline_s = time.monotonic() + wait_s
    told = False
    while not stop.is_set():
        try:
            await redis.ping()
        except UnavailableError as exc:
            if time.monotonic() >= deadline_s:
                raise UnavailableError(f"gave up after {wait_s:.0f} s: {exc}") from exc
            if not told:
                _log.warning("redis.waiting address=%s limit_s=%.0f why=%r", redis.address, wait_s, str(exc))
                told = True
            await pause(stop, pause_s)
        else:
            if told:
                _log.info("redis.found address=%s", redis.address)
            return True
    return False


async def pause(stop: asyncio.Event, seconds: float) -> bool:
    """Sleep, or less if `stop` is set meanwhile; returns whether it is."""
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return stop.is_set()
    return True
