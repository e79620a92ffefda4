# SPDX-License-Identifier: Apache-2.0
"""A publish and its documents: a crash at any point loses nothing that was told and leaves nothing that was not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from compiler_svc.jobs.publishing import PENDING_FRONT, PublishDocuments
from compiler_svc.jobs.redis_jobs import RedisJobQueue
from compiler_svc.keys import Keys, envelope_document, manifest_document, model_document
from compiler_svc.redis_index import RedisIndex
from dovetail.pb.v1.compiler_pb2 import BUILD_PHASE_READY
from dovetail.store.disk import DiskDocumentStore
from dovetail.store.redis_connection import RedisConnection
from tests.fakes.queue_work import WAIT_S, claimed, published
from tests.fakes.records import job_for, key_of, manifest_of, model_record

KEY = key_of("a")
SIGNED = b'{"signatures":[]}'


class Crash(BaseException):
    """The publisher dies."""


class MortalDocuments(DiskDocumentStore):
    """Documents whose user dies before one of its writes: the `dies_at`-th, if that is not 0."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.dies_at = 0
        self.writes = 0

    async def put(self, key: str, data: bytes) -> None:
        self._live()
        await super().put(key, data)

    async def delete(self, key: str) -> None:
        self._live()
        await super().delete(key)

    def _live(self) -> None:
        self.writes += 1
        if self.writes == self.dies_at:
            raise Crash


class GatedDocuments(DiskDocumentStore):
    """Documents whose user is held up before it writes a manifest's envelope."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.held, self.go = asyncio.Event(), asyncio.Event()

    async def put(self, key: str, data: bytes) -> None:
        if key.startswith("envelopes/"):
            self.held.set()
            await self.go.wait()
        await super().put(key, data)


def finishing(redis: RedisConnection, documents: DiskDocumentStore) -> PublishDocuments:
    return PublishDocuments(redis, documents, Keys())


async def shown(documents: DiskDocumentStore) -> tuple[bytes | None, bytes | None, int]:
    """Manifest, envelope, and how many publishes are pending."""
    pending = await documents.keys(PENDING_FRONT)
    return await documents.get(manifest_document(KEY)), await documents.get(envelope_document(KEY)), len(pending)


async def test_a_publish_leaves_manifest_and_envelope_and_nothing_else(
    queue: RedisJobQueue, documents: DiskDocumentStore, redis: RedisConnection
) -> None:
    await queue.submit(job_for(KEY))

    assert await published(queue, await claimed(queue), envelope=SIGNED)

    assert await shown(documents) == (manifest_of(KEY).to_bytes(), SIGNED, 0)
    assert await redis.call("GET", Keys().envelope(KEY)) == SIGNED


async def test_a_publisher_without_a_lease_leaves_nothing(queue: RedisJobQueue, documents: DiskDocumentStore) -> None:
    await queue.submit(job_for(KEY))
    lease = await claimed(queue)
    await queue.cancel(KEY)

    assert not await published(queue, lease, envelope=SIGNED)

    assert await shown(documents) == (None, None, 0)


@pytest.mark.parametrize("dies_at", [1, 2, 3, 4])
@pytest.mark.parametrize("forced", [False, True])
async def test_a_publisher_that_dies_leaves_what_was_told_whole(
    redis: RedisConnection, tmp_path: Path, dies_at: int, forced: bool
) -> None:
    documents = MortalDocuments(tmp_path)
    queue = RedisJobQueue(redis, documents)
    await queue.submit(job_for(KEY))
    before = (None, None, 0)
    if forced:
        assert await published(queue, await claimed(queue), label="before", envelope=b"before")
        await queue.submit(job_for(KEY), force=True)
        before = (manifest_of(KEY, label="before").to_bytes(), b"before", 0)
    lease = await claimed(queue)
    documents.writes, documents.dies_at = 0, dies_at

    with pytest.raises(Crash):
        await published(queue, lease, envelope=SIGNED)
    documents.dies_at = 0
    build = await queue.get(KEY)
    finished = await finishing(redis, documents).finish_abandoned()

    told = build is not None and build.phase == BUILD_PHASE_READY
    assert told == (dies_at > 1)
    assert finished == told
    assert await shown(documents) == ((manifest_of(KEY).to_bytes(), SIGNED, 0) if told else before)


async def test_what_a_publisher_prepared_before_it_lost_its_lease_is_dropped(
    queue: RedisJobQueue, documents: DiskDocumentStore, redis: RedisConnection
) -> None:
    await queue.submit(job_for(KEY))
    slow = await claimed(queue, "slow")
    ours = finishing(redis, documents)
    fence = f"{slow.fence}.{slow.token}"
    await ours.prepare(KEY, fence, manifest_of(KEY, label="late").to_bytes(), b"")
    assert await ours.finish_abandoned() == 0
    assert (await shown(documents))[2] == 1  # it may still be accepted
    assert await queue.release(slow)

    assert await published(queue, await claimed(queue, "quick"), label="winner")
    assert await ours.finish_abandoned() == 0

    assert await shown(documents) == (manifest_of(KEY, label="winner").to_bytes(), None, 0)


async def test_a_publisher_that_is_overtaken_while_it_writes_gives_way(
    redis: RedisConnection, documents: DiskDocumentStore, tmp_path: Path
) -> None:
    gated = GatedDocuments(tmp_path)
    held_up, quick = RedisJobQueue(redis, gated), RedisJobQueue(redis, documents)
    await quick.submit(job_for(KEY))
    first = asyncio.ensure_future(published(held_up, await claimed(quick), label="first", envelope=b"first"))
    await asyncio.wait_for(gated.held.wait(), WAIT_S)

    await quick.submit(job_for(KEY), force=True)
    assert await published(quick, await claimed(quick), label="second", envelope=b"second")
    gated.go.set()

    assert await first
    assert await shown(documents) == (manifest_of(KEY, label="second").to_bytes(), b"second", 0)


@pytest.mark.parametrize("published_before", [False, True])
async def test_if_redis_lost_everything_too_a_pending_artifact_is_kept_unless_there_is_another(
    queue: RedisJobQueue, documents: DiskDocumentStore, redis: RedisConnection, published_before: bool
) -> None:
    await RedisIndex(redis, documents).add_model(model_record())
    if published_before:
        await queue.submit(job_for(KEY))
        assert await published(queue, await claimed(queue), label="before")
    ours = finishing(redis, documents)
    await ours.prepare(KEY, "9.token", manifest_of(KEY, label="pending").to_bytes(), b"")
    await redis.call("FLUSHALL")

    assert await ours.finish_abandoned() == (not published_before)

    kept = manifest_of(KEY, label="before" if published_before else "pending").to_bytes()
    assert await shown(documents) == (kept, None, 0)


async def test_what_belongs_to_a_deleted_model_is_not_published_after_all(
    queue: RedisJobQueue, documents: DiskDocumentStore, redis: RedisConnection
) -> None:
    await finishing(redis, documents).prepare(KEY, "9.token", manifest_of(KEY).to_bytes(), b"")

    await finishing(redis, documents).finish_abandoned()

    assert await documents.get(model_document("digits", 1)) is None
    assert await shown(documents) == (None, None, 0)


async def test_a_publish_that_redis_lost_before_it_had_its_documents_stays_the_only_one(
    redis: RedisConnection, tmp_path: Path
) -> None:
    documents = GatedDocuments(tmp_path)
    queue, other = RedisJobQueue(redis, documents), RedisJobQueue(redis, DiskDocumentStore(tmp_path))
    await queue.submit(job_for(KEY))
    first = asyncio.create_task(published(queue, await claimed(queue), label="first", envelope=SIGNED))
    await asyncio.wait_for(documents.held.wait(), WAIT_S)  # it was told to be ready
    await redis.call("FLUSHALL")
    await redis.call("HSET", Keys().meta, "epoch", "another")
    await other.submit(job_for(KEY))

    assert not await published(other, await claimed(other, "second"), label="second")

    build = await other.get(KEY)
    assert build is not None
    assert build.phase == BUILD_PHASE_READY
    assert await redis.call("GET", Keys().manifest(KEY)) == manifest_of(KEY, label="first").to_bytes()
    documents.go.set()
    assert await first
    assert await shown(documents) == (manifest_of(KEY, label="first").to_bytes(), SIGNED, 0)


async def test_what_redis_lost_of_a_publisher_that_died_is_finished_although_it_was_ordered_again(
    redis: RedisConnection, tmp_path: Path
) -> None:
    documents = MortalDocuments(tmp_path)
    queue = RedisJobQueue(redis, documents)
    await queue.submit(job_for(KEY))
    lease = await claimed(queue)
    documents.dies_at = 2  # it was told to be ready, and has no manifest's document
    with pytest.raises(Crash):
        await published(queue, lease, label="first", envelope=SIGNED)
    documents.dies_at = 0
    await redis.call("FLUSHALL")
    await redis.call("HSET", Keys().meta, "epoch", "another")
    await queue.submit(job_for(KEY))
    second = await claimed(queue, "second")

    assert await finishing(redis, documents).finish_abandoned() == 1

    assert not await published(queue, second, label="second")
    assert await shown(documents) == (manifest_of(KEY, label="first").to_bytes(), SIGNED, 0)
    assert await redis.call("GET", Keys().manifest(KEY)) == manifest_of(KEY, label="first").to_bytes()


class ListedDocuments(DiskDocumentStore):
    """Documents of which something becomes of the pending ones between their listing and their reading."""

    def __init__(self, root: Path, meanwhile: Callable[[], Awaitable[object]]) -> None:
        super().__init__(root)
        self._meanwhile = meanwhile

    async def keys(self, prefix: str) -> list[str]:
        found = await super().keys(prefix)
        if found and prefix.startswith(PENDING_FRONT):
            await self._meanwhile()
        return list(found)


async def test_a_publisher_that_settles_while_it_is_looked_for_stays_the_only_one(
    redis: RedisConnection, tmp_path: Path
) -> None:
    documents = GatedDocuments(tmp_path)
    queue = RedisJobQueue(redis, documents)
    await queue.submit(job_for(KEY))
    first = asyncio.create_task(published(queue, await claimed(queue), label="first", envelope=SIGNED))
    await asyncio.wait_for(documents.held.wait(), WAIT_S)
    await redis.call("FLUSHALL")
    await redis.call("HSET", Keys().meta, "epoch", "another")
    await RedisIndex(redis, documents).add_model(model_record())

    async def settled() -> None:
        documents.go.set()
        await first

    other = RedisJobQueue(redis, ListedDocuments(tmp_path, settled))
    await other.submit(job_for(KEY))
    assert not await published(other, await claimed(other, "second"), label="second")

    assert await first
    assert await shown(documents) == (manifest_of(KEY, label="first").to_bytes(), SIGNED, 0)
    assert await redis.call("GET", Keys().manifest(KEY)) == manifest_of(KEY, label="first").to_bytes()


@pytest.mark.parametrize("forced", [False, True])
async def test_what_was_ordered_while_redis_was_empty_does_not_replace_what_comes_back(
    redis: RedisConnection, queue: RedisJobQueue, documents: DiskDocumentStore, forced: bool
) -> None:
    index = RedisIndex(redis, documents)
    await index.add_model(model_record())
    await queue.submit(job_for(KEY))
    assert await published(queue, await claimed(queue), label="first")
    await redis.call("FLUSHALL")
    await queue.submit(job_for(KEY), force=forced)
    second = await claimed(queue, "second")
    await index.rebuild()

    assert await published(queue, second, label="second") == forced  # who forced it wants it to

    build = await queue.get(KEY)
    assert build is not None
    assert build.phase == BUILD_PHASE_READY
    kept = manifest_of(KEY, label="second" if forced else "first").to_bytes()
    assert await index.manifest(KEY) == kept
    assert await shown(documents) == (kept, None, 0)
