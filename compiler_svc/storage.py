# SPDX-License-Identifier: Apache-2.0
"""Puts the stores together as the compiler service and its workers use them; nowhere else are their classes named."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass

from compiler_svc.collection.pins import Pins
from compiler_svc.collection.quota import Quotas
from compiler_svc.index import Index
from compiler_svc.jobs.base import JobQueue
from compiler_svc.jobs.redis_jobs import RedisJobQueue
from compiler_svc.kept_files import KeptFiles
from compiler_svc.keys import Keys
from compiler_svc.redis_guard import RedisGuard
from compiler_svc.redis_index import RedisIndex
from compiler_svc.shared_settings import StoreSettings
from compiler_svc.waiting import WaitingOrders
from dovetail.errors import UnavailableError
from dovetail.store.base import ChunkStore, CollectableChunkStore, DocumentStore
from dovetail.store.disk import DiskChunkStore, DiskDocumentStore
from dovetail.store.object_address import ObjectAddress
from dovetail.store.object_bucket import open_bucket
from dovetail.store.object_chunks import ObjectChunkStore
from dovetail.store.object_documents import ObjectDocumentStore
from dovetail.store.redis_chunks import RedisChunkStore
from dovetail.store.redis_connection import RedisConnection, connect
from dovetail.store.tiered import TieredChunkStore
from dovetail.store.verified import VerifiedChunkStore

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Storage:
    """Everything that outlives a process.

    Attributes:
        redis: The connection below index and jobs.
        chunks: Hot tier over durable tier, both checked.
        index: What exists.
        jobs: What is to be built.
        kept: What builds keep for later ones.
        waiting: Orders that no live worker covers.
        documents: The durable tier's documents, below index, jobs, kept and waiting.
        durable: The durable tier's chunks as they are kept, for collecting, checking and counting them.
        hot: The hot tier's chunks alone, checked.
        blob: The connection below the hot tier; `redis` itself if that is one server.
        guard: Keeps us from using a Redis that is set up wrongly.
        quotas: What tenants may store.
        pins: What keeps long work's chunks.
    """

    redis: RedisConnection
    chunks: ChunkStore
    index: Index
    jobs: JobQueue
    kept: KeptFiles
    waiting: WaitingOrders
    documents: DocumentStore
    durable: CollectableChunkStore
    hot: ChunkStore
    blob: RedisConnection
    guard: RedisGuard
    quotas: Quotas
    pins: Pins

    async def aclose(self) -> None:
        """Stop watching Redis and close all connections to it."""
        await self.guard.aclose()
        await self.redis.aclose()
        if self.blob is not self.redis:
            await self.blob.aclose()


def open_storage(settings: StoreSettings, *, lease_s: float = 60.0) -> Storage:
    """Put the stores together; nothing is contacted yet.

    Raises:
        InvalidInputError: An address is malformed.
        UnsupportedError: An object store is named, but the library for it is not installed.
    """
    redis = connect(settings.redis_url, home_key=Keys().prefix)
    blob = redis
    if settings.blob_redis_url != settings.redis_url:
        blob = connect(settings.blob_redis_url, setting="DOVETAIL_BLOB_REDIS_URL")
    kept_chunks, documents = _durable_tier(settings)
    hot = VerifiedChunkStore(RedisChunkStore(blob), name="redis")
    durable = VerifiedChunkStore(kept_chunks, name="durable")
    index, jobs = RedisIndex(redis, documents), RedisJobQueue(redis, documents, lease_s=lease_s)
    return Storage(
        redis=redis,
        chunks=TieredChunkStore(hot, durable),
        index=index,
        jobs=jobs,
        kept=KeptFiles(documents),
        waiting=WaitingOrders(documents, index, jobs),
        documents=documents,
        durable=kept_chunks,
        hot=hot,
        blob=blob,
        guard=RedisGuard(redis, blob),
        quotas=Quotas(redis, documents, index.rebuild, default_bytes=settings.quota_bytes),
        pins=Pins(redis, kept_chunks.now_ms),
    )


def _durable_tier(settings: StoreSettings) -> tuple[CollectableChunkStore, DocumentStore]:
    if settings.blob_url:
        bucket = open_bucket(ObjectAddress.parse(settings.blob_url))
        return ObjectChunkStore(bucket), ObjectDocumentStore(bucket)
    return DiskChunkStore(settings.blob_dir), DiskDocumentStore(settings.blob_dir)


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
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
    return stop.is_set()
