# SPDX-License-Identifier: Apache-2.0
"""The job queue on a real Redis: one build for many orders, leases by the server's clock, typed failures."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from compiler_svc.jobs.policy import QueuePolicy
from compiler_svc.jobs.redis_jobs import RedisJobQueue
from compiler_svc.keys import manifest_document
from compiler_svc.redis_index import RedisIndex
from dovetail.errors import InvalidInputError, NotFoundError, PreconditionError
from dovetail.pb.v1.compiler_pb2 import (
    BUILD_FAILURE_KIND_DETERMINISTIC,
    BUILD_FAILURE_KIND_INFRASTRUCTURE,
    BUILD_FAILURE_KIND_RESOURCE,
    BUILD_PHASE_BUILDING,
    BUILD_PHASE_CANCELLED,
    BUILD_PHASE_FAILED,
    BUILD_PHASE_GATING,
    BUILD_PHASE_QUEUED,
    BUILD_PHASE_READY,
    Build,
)
from dovetail.store.disk import DiskDocumentStore
from dovetail.store.redis_connection import RedisConnection
from tests.fakes.queue_work import WAIT_S, claimed, phases, published, watched
from tests.fakes.records import build_in, failure_of, job_for, key_of, manifest_of, model_record, worker_record
from tests.fixtures_jobs import TINY_LEASE_S

KEY = key_of("a")


class FlushingDocuments(DiskDocumentStore):
    """Documents whose next write is followed by the loss of everything in Redis."""

    def __init__(self, root: Path, redis: RedisConnection) -> None:
        super().__init__(root)
        self._redis = redis
        self.armed = False

    async def put(self, key: str, data: bytes) -> None:
        await super().put(key, data)
        if self.armed:
            self.armed = False
            await self._redis.call("FLUSHALL")


class TestSingleFlight:
    async def test_twenty_orders_at_once_are_one_build(self, queue: RedisJobQueue) -> None:
        await queue.heartbeat(worker_record())

        builds = await asyncio.gather(*(queue.submit(job_for(KEY)) for _ in range(20)))

        assert {build.phase for build in builds} == {BUILD_PHASE_QUEUED}
        assert not any(build.cached for build in builds)
        assert len(await queue.list()) == 1
        assert (await claimed(queue)).job == job_for(KEY)
        assert await queue.claim(worker_record("w2"), wait_s=0) is None

    async def test_an_order_attaches_to_a_running_build(self, queue: RedisJobQueue) -> None:
        await queue.submit(job_for(KEY))
        await claimed(queue)

        build = await queue.submit(job_for(KEY), force=True)

        assert (build.phase, build.attempts, build.cached) == (BUILD_PHASE_BUILDING, 1, False)

    async def test_a_ready_build_is_cached_until_it_is_forced(self, queue: RedisJobQueue) -> None:
        await queue.submit(job_for(KEY))
        assert await published(queue, await claimed(queue))

        cached = await queue.submit(job_for(KEY))
        forced = await queue.submit(job_for(KEY), force=True)

        assert (cached.phase, cached.cached, cached.fraction) == (BUILD_PHASE_READY, True, 1.0)
        assert (forced.phase, forced.cached) == (BUILD_PHASE_QUEUED, False)
        assert await published(queue, await claimed(queue))

    async def test_equal_content_under_another_name_attaches_and_finds_the_artifact(
        self, queue: RedisJobQueue, redis: RedisConnection, documents: DiskDocumentStore
    ) -> None:
        index = RedisIndex(redis, documents)
        for name in ("digits", "twin"):
            await index.add_model(model_record(name))
        await queue.submit(job_for(KEY))
        assert await published(queue, await claimed(queue))

        build = await queue.submit(job_for(KEY, model="twin"))

        assert (build.model, build.cached) == ("twin", True)
        assert [manifest.artifact_key for manifest, _ in await index.manifests("twin")] == [KEY]
        assert [found.model for found in await queue.list("twin", 1)] == ["twin"]

    async def test_a_published_artifact_is_known_though_its_build_record_is_lost(
        self, queue: RedisJobQueue, redis: RedisConnection, documents: DiskDocumentStore
    ) -> None:
        index = RedisIndex(redis, documents)
        await index.add_model(model_record())
        await queue.submit(job_for(KEY))
        assert await published(queue, await claimed(queue))
        await redis.call("FLUSHALL")
        await index.rebuild()

        build = await queue.submit(job_for(KEY))

        assert (build.phase, build.cached) == (BUILD_PHASE_READY, True)
        assert await queue.get(KEY) == build
        assert await queue.list("digits") == await queue.list() == [build]
        assert phases(await watched(queue.watch([KEY]))) == [BUILD_PHASE_READY]


class TestLeases:
    async def test_an_expired_lease_is_taken_by_another_and_the_first_worker_changes_nothing(
        self, queue: RedisJobQueue, hasty: RedisJobQueue, documents: DiskDocumentStore
    ) -> None:
        await queue.submit(job_for(KEY))
        slow = await claimed(hasty, "slow")

        quick = await claimed(queue, "quick", wait_s=WAIT_S)

        assert (quick.attempt, quick.fence > slow.fence) == (2, True)
        assert not await hasty.renew(slow)
        assert not await published(hasty, slow, label="late")
        assert not await hasty.fail(slow, failure_of(BUILD_FAILURE_KIND_DETERMINISTIC), Build())
        await hasty.progress(slow, build_in(BUILD_PHASE_GATING))
        build = await queue.get(KEY)
        assert build is not None
        assert build.phase == BUILD_PHASE_BUILDING

        assert await published(queue, quick, label="winner")
        assert not await published(hasty, slow, label="late")
        assert await documents.get(manifest_document(KEY)) == manifest_of(KEY, label="winner").to_bytes()

    async def test_a_renewed_lease_outlives_its_first_deadline(
        self, queue: RedisJobQueue, hasty: RedisJobQueue
    ) -> None:
        await queue.submit(job_for(KEY))
        lease = await claimed(hasty)
        assert await queue.renew(lease)  # extends it to this queue's 60 s

        assert await queue.claim(worker_record("w2"), wait_s=3 * TINY_LEASE_S) is None
        assert await published(queue, lease)

    async def test_a_job_that_loses_three_workers_fails_for_infrastructure(
        self, redis: RedisConnection, documents: DiskDocumentStore
    ) -> None:
        policy = QueuePolicy(retry_after_s=0.05)
        queue = RedisJobQueue(redis, documents, policy=policy)
        hasty = RedisJobQueue(redis, documents, policy=policy, lease_s=TINY_LEASE_S)
        await queue.submit(job_for(KEY))
        for attempt in (1, 2, 3):
            assert (await claimed(hasty, f"w{attempt}", wait_s=WAIT_S)).attempt == attempt

        assert await queue.claim(worker_record("w4"), wait_s=3 * TINY_LEASE_S) is None

        build = await queue.get(KEY)
        assert build is not None
        assert (build.phase, build.attempts) == (BUILD_PHASE_FAILED, 3)
        assert (build.failure.kind, build.failure.code) == (BUILD_FAILURE_KIND_INFRASTRUCTURE, "worker_lost")
        assert "w3 stopped answering" in build.message

    async def test_a_watcher_sees_the_end_though_no_worker_is_left(
        self, redis: RedisConnection, documents: DiskDocumentStore
    ) -> None:
        queue = RedisJobQueue(
            redis, documents, lease_s=TINY_LEASE_S, policy=QueuePolicy(max_attempts=1, worker_ttl_s=0.05)
        )
        await queue.submit(job_for(KEY))
        await claimed(queue)

        assert phases(await watched(queue.watch([KEY])))[-1] == BUILD_PHASE_FAILED

    async def test_a_fence_is_not_given_again_though_the_last_one_was_lost_with_redis_data(
        self, queue: RedisJobQueue, redis: RedisConnection
    ) -> None:
        await queue.submit(job_for(KEY))
        first = await claimed(queue)
        await redis.call("DEL", "{dovetail}:fence")

        assert await queue.release(first)
        second = await claimed(queue)

        assert second.fence > first.fence

    async def test_a_lease_that_equals_a_later_one_in_worker_and_number_is_still_not_that_one(
        self, queue: RedisJobQueue, redis: RedisConnection
    ) -> None:
        await queue.submit(job_for(KEY))
        old = await claimed(queue)
        assert await queue.release(old)
        new = await claimed(queue)
        # As after a loss of data with a clock that was set back: the same number again, to the same worker.
        await redis.call("HSET", f"{{dovetail}}:job:{KEY}", "fence", f"{old.fence}.{new.token}")

        assert not await queue.renew(old)
        assert not await published(queue, old)

    async def test_publishing_twice_with_one_lease_is_one_publish(
        self, queue: RedisJobQueue, redis: RedisConnection
    ) -> None:
        await queue.submit(job_for(KEY))
        lease = await claimed(queue)
        await asyncio.gather(*(published(queue, lease) for _ in range(4)))

        assert await redis.call("XLEN", "{dovetail}:changes") == 1

    @pytest.mark.parametrize("forced", [False, True])
    async def test_a_publish_that_loses_its_lease_at_the_last_moment_leaves_the_documents_as_they_were(
        self, redis: RedisConnection, tmp_path: Path, forced: bool
    ) -> None:
        documents = FlushingDocuments(tmp_path, redis)
        queue = RedisJobQueue(redis, documents)
        await queue.submit(job_for(KEY))
        if forced:
            assert await published(queue, await claimed(queue), label="first")
            await queue.submit(job_for(KEY), force=True)
        lease = await claimed(queue)
        documents.armed = True

        assert not await published(queue, lease, label="second")

        kept = await documents.get(manifest_document(KEY))
        assert kept == (manifest_of(KEY, label="first").to_bytes() if forced else None)

    async def test_a_manifest_of_another_artifact_is_refused(self, queue: RedisJobQueue) -> None:
        await queue.submit(job_for(KEY))
        lease = await claimed(queue)

        with pytest.raises(InvalidInputError, match="not that of artifact"):
            await queue.publish(lease, manifest_of(key_of("other")).to_bytes(), Build())


class TestFailures:
    async def test_a_deterministic_failure_is_remembered_until_it_is_forced(self, queue: RedisJobQueue) -> None:
        await queue.submit(job_for(KEY))
        failure = failure_of(BUILD_FAILURE_KIND_DETERMINISTIC, "operator Foo is not supported")
        report = Build(gate_json=b"{}", fraction=0.4)
        assert await queue.fail(await claimed(queue), failure, report)

        known = await queue.submit(job_for(KEY))
        forced = await queue.submit(job_for(KEY), force=True)

        assert (known.phase, known.cached, known.failure) == (BUILD_PHASE_FAILED, True, failure)
        assert (known.message, known.gate_json) == ("operator Foo is not supported", b"{}")
        assert (forced.phase, forced.attempts, forced.HasField("failure")) == (BUILD_PHASE_QUEUED, 0, False)
        assert await published(queue, await claimed(queue))

    @pytest.mark.parametrize("kind", [BUILD_FAILURE_KIND_RESOURCE, BUILD_FAILURE_KIND_INFRASTRUCTURE])
    async def test_a_passing_failure_may_be_tried_again_after_a_while(
        self, queue: RedisJobQueue, redis: RedisConnection, documents: DiskDocumentStore, kind: int
    ) -> None:
        patient = queue
        eager = RedisJobQueue(redis, documents, policy=QueuePolicy(retry_after_s=0))
        await patient.submit(job_for(KEY))
        assert await patient.fail(await claimed(patient), failure_of(kind), Build())
        assert (await patient.submit(job_for(KEY))).cached

        await patient.submit(job_for(KEY), force=True)
        assert await eager.fail(await claimed(eager), failure_of(kind), Build())

        assert (await eager.submit(job_for(KEY))).phase == BUILD_PHASE_QUEUED

    async def test_a_cancelled_build_ends_at_once_and_its_worker_is_told(self, queue: RedisJobQueue) -> None:
        await queue.submit(job_for(KEY))
        lease = await claimed(queue)

        assert (await queue.cancel(KEY)).phase == BUILD_PHASE_CANCELLED

        assert not await queue.renew(lease)
        assert not await published(queue, lease)
        assert (await queue.submit(job_for(KEY))).phase == BUILD_PHASE_QUEUED

    async def test_what_has_ended_or_never_was_cannot_be_cancelled(self, queue: RedisJobQueue) -> None:
        with pytest.raises(NotFoundError, match="no build"):
            await queue.cancel(KEY)
        await queue.submit(job_for(KEY))
        await queue.cancel(KEY)
        with pytest.raises(PreconditionError, match="already ended"):
            await queue.cancel(KEY)

        assert await queue.claim(worker_record(), wait_s=0) is None

    async def test_deleting_the_model_cancels_its_build(
        self, queue: RedisJobQueue, redis: RedisConnection, documents: DiskDocumentStore
    ) -> None:
        index = RedisIndex(redis, documents)
        await index.add_model(model_record())
        await queue.submit(job_for(KEY))
        lease = await claimed(queue)
        events = queue.watch([KEY])
        first = await anext(events)

        await index.delete_model("digits")

        assert phases([first, *await watched(events)]) == [BUILD_PHASE_BUILDING, BUILD_PHASE_CANCELLED]
        assert not await published(queue, lease)
        assert await queue.get(KEY) is None
        assert await documents.keys("manifests/") == []
