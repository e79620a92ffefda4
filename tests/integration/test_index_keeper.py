# SPDX-License-Identifier: Apache-2.0
"""A Redis that lost its last second: the index is as new as the durable tier again, and nobody had to do anything.

The loss is made exact: the server's state is saved, more is acknowledged, the server is killed and comes back with the
older state, its epoch and all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from compiler_svc.index_keeper import IndexKeeper
from compiler_svc.jobs.publishing import PublishDocuments
from compiler_svc.jobs.redis_jobs import RedisJobQueue
from compiler_svc.keys import Keys, model_document
from compiler_svc.redis_index import RedisIndex
from dovetail.errors import NotFoundError
from dovetail.pb.v1.compiler_pb2 import BUILD_PHASE_BUILDING, BUILD_PHASE_READY
from dovetail.store.disk import DiskDocumentStore
from dovetail.store.redis_connection import RedisConnection, connect
from tests.fakes.queue_work import claimed, published
from tests.fakes.records import job_for, key_of, manifest_of, model_record, worker_record
from tests.fixtures_redis import RedisServer

KEY = key_of("a")


class Site:
    """One Redis that can lose what was not saved, one durable tier, and what a service has over them."""

    def __init__(self, server: RedisServer, redis: RedisConnection, documents: DiskDocumentStore) -> None:
        self._server = server
        self.redis = redis
        self.documents = documents
        self.index = RedisIndex(redis, documents)
        self.queue = RedisJobQueue(redis, documents)
        self.keeper = IndexKeeper(redis, documents, self.index)

    async def save(self) -> None:
        await self.redis.call("SAVE")

    def lose(self) -> None:
        """Back to what was saved."""
        self._server.stop()
        self._server.start()

    async def publish(self, key: str = KEY, *, label: str = "", force: bool = False) -> None:
        await self.queue.submit(job_for(key), force=force)
        assert await published(self.queue, await claimed(self.queue), label=label, envelope=label.encode())


@pytest.fixture
async def site(redis_factory: Callable[..., RedisServer], tmp_path: Path) -> AsyncIterator[Site]:
    server = redis_factory()
    redis = connect(server.url)
    site = Site(server, redis, DiskDocumentStore(tmp_path))
    await site.index.add_model(model_record())
    await site.keeper.look()
    yield site
    await redis.aclose()


async def test_what_was_acknowledged_and_lost_is_there_again(site: Site) -> None:
    other = key_of("other")
    await site.publish(label="old")
    await site.index.set_alias("digits", "prod", 1)
    await site.save()
    await site.index.add_model(model_record(content="b"))
    await site.index.set_alias("digits", "prod", 2)
    await site.publish(label="new", force=True)
    await site.publish(other)

    site.lose()
    with pytest.raises(NotFoundError):
        await site.index.manifest(other)
    assert await site.keeper.look()

    assert await site.index.manifest(KEY) == manifest_of(KEY, label="new").to_bytes()
    assert await site.index.envelope(KEY) == b"new"
    assert await site.index.manifest(other) == manifest_of(other).to_bytes()
    assert len(await site.index.manifests("digits", 1)) == 2
    assert (await site.index.model("digits", alias="prod")).model.version == 2
    build = await site.queue.get(other)
    assert build is not None
    assert build.phase == BUILD_PHASE_READY


async def test_a_job_whose_publish_was_lost_is_done_and_not_built_again(site: Site) -> None:
    await site.queue.submit(job_for(KEY))
    lease = await claimed(site.queue)
    await site.save()
    assert await published(site.queue, lease, label="first")

    site.lose()
    building = await site.queue.get(KEY)
    await site.keeper.look()
    build = await site.queue.get(KEY)

    assert building is not None
    assert build is not None
    assert (building.phase, build.phase) == (BUILD_PHASE_BUILDING, BUILD_PHASE_READY)
    assert await site.queue.claim(worker_record("w2"), wait_s=0) is None
    assert [manifest.artifact_key for manifest, _ in await site.index.manifests("digits", 1)] == [KEY]


async def test_a_worker_that_builds_again_what_redis_lost_does_not_publish_it_twice(site: Site) -> None:
    await site.queue.submit(job_for(KEY))
    await site.save()
    assert await published(site.queue, await claimed(site.queue), label="first", envelope=b"first")

    site.lose()
    assert not await published(site.queue, await claimed(site.queue), label="second", envelope=b"second")

    build = await site.queue.get(KEY)
    assert build is not None
    assert build.phase == BUILD_PHASE_READY
    assert await site.index.manifest(KEY) == manifest_of(KEY, label="first").to_bytes()
    assert await site.index.envelope(KEY) == b"first"


async def test_a_deletion_that_was_lost_is_done_again(site: Site) -> None:
    await site.publish()
    await site.index.add_model(model_record("kept"))
    await site.save()
    await site.index.delete_model("digits")

    site.lose()
    await site.keeper.look()

    assert [record.model.name for record in await site.index.models()] == ["kept"]
    assert await site.index.manifests() == []


async def test_a_document_that_is_missing_for_another_reason_takes_nothing_from_the_index(site: Site) -> None:
    await site.publish()
    await site.save()
    await site.documents.delete(model_document("digits", 1))

    site.lose()
    await site.keeper.look()

    assert (await site.index.model("digits")).model.version == 1
    assert await site.index.manifest(KEY) == manifest_of(KEY).to_bytes()


async def test_a_server_that_was_not_restarted_is_not_compared_again_by_this_service_or_another(site: Site) -> None:
    another = IndexKeeper(site.redis, site.documents, site.index)

    assert not await site.keeper.look()
    assert not await another.look()

    site.lose()
    assert await another.look()
    assert not await site.keeper.look()


async def test_a_publisher_that_crashed_is_finished_and_found(site: Site) -> None:
    await site.redis.call("FLUSHALL")
    pending = PublishDocuments(site.redis, site.documents, Keys())
    await pending.prepare(KEY, "9.token", manifest_of(KEY).to_bytes(), b"")

    assert await site.keeper.look()

    assert await site.index.manifest(KEY) == manifest_of(KEY).to_bytes()
