# SPDX-License-Identifier: Apache-2.0
"""The job queue on a real Redis: one build for many orders, leases by the server's clock, typed failures, watching."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from compiler_svc.jobs.base import Lease
from compiler_svc.jobs.policy import QueuePolicy
from compiler_svc.jobs.redis_jobs import RedisJobQueue
from compiler_svc.keys import manifest_document
from compiler_svc.redis_index import RedisIndex
from dovetail.errors import InvalidInputError, NotFoundError, PreconditionError, UnavailableError
from dovetail.pb.v1.compiler_pb2 import (
    BUILD_FAILURE_KIND_DETERMINISTIC,
    BUILD_FAILURE_KIND_INFRASTRUCTURE,
    BUILD_FAILURE_KIND_RESOURCE,
    BUILD_PHASE_BUILDING,
    BUILD_PHASE_CANCELLED,
    BUILD_PHASE_FAILED,
    BUILD_PHASE_GATING,
    BUILD_PHASE_MEASURING,
    BUILD_PHASE_PUBLISHING,
    BUILD_PHASE_QUEUED,
    BUILD_PHASE_READY,
    BUILD_PHASE_UNROUTED,
    Build,
    BuildEvent,
)
from dovetail.store.disk import DiskDocumentStore
from dovetail.store.redis_connection import RedisConnection, connect
from tests.fakes.records import build_in, failure_of, job_for, key_of, manifest_of, model_record, worker_record
from tests.fixtures_redis import RedisServer

KEY = key_of("a")
TINY_LEASE_S = 0.05
WAIT_S = 20.0  # far more than needed; a claim returns as soon as there is something to take


@pytest.fixture
def documents(tmp_path: Path) -> DiskDocumentStore:
    return DiskDocumentStore(tmp_path)


@pytest.fixture
def queue(redis: RedisConnection, documents: DiskDocumentStore) -> RedisJobQueue:
    return RedisJobQueue(redis, documents)


@pytest.fixture
def hasty(redis: RedisConnection, documents: DiskDocumentStore) -> RedisJobQueue:
    """The same queue for claimants whose lease ends almost at once."""
    return RedisJobQueue(redis, documents, lease_s=TINY_LEASE_S)


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


async def claimed(queue: RedisJobQueue, worker_id: str = "w1", *, wait_s: float = 0) -> Lease:
    lease = await queue.claim(worker_record(worker_id), wait_s=wait_s)
    assert lease is not None
    return lease


async def published(queue: RedisJobQueue, lease: Lease, *, label: str = "") -> bool:
    manifest = manifest_of(lease.job.artifact_key, version=lease.job.version, label=label)
    return await queue.publish(lease, manifest.to_bytes(), build_in(BUILD_PHASE_PUBLISHING, "published"))


async def watched(events: AsyncIterator[BuildEvent]) -> list[BuildEvent]:
    async with asyncio.timeout(WAIT_S):
        return [event async for event in events]


def phases(events: list[BuildEvent]) -> list[int]:
    return [event.build.phase for event in events]


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


class TestRouting:
    async def test_the_oldest_job_is_taken_first_by_exactly_one_of_two_workers(self, queue: RedisJobQueue) -> None:
        for name in ("first", "second"):
            await queue.submit(job_for(key_of(name)))

        leases = [await claimed(queue, worker_id) for worker_id in ("w1", "w2")]

        assert [lease.job.artifact_key for lease in leases] == [key_of("first"), key_of("second")]
        assert leases[0].fence < leases[1].fence

    async def test_two_claims_at_once_for_one_job_give_it_to_one(self, queue: RedisJobQueue) -> None:
        await queue.submit(job_for(KEY))

        leases = await asyncio.gather(*(queue.claim(worker_record(f"w{i}"), wait_s=0) for i in range(8)))

        assert len([lease for lease in leases if lease]) == 1

    @pytest.mark.parametrize(
        ("job", "text"),
        [
            (job_for(KEY, engine="tensorrt"), "engine tensorrt on x86_64"),
            (job_for(KEY, arch="aarch64"), "engine onnxruntime on aarch64"),
            (job_for(KEY, toolchain={"onnxruntime": "9.9"}), "engine onnxruntime on x86_64 (onnxruntime 9.9)"),
            (job_for(KEY, isa_class="x86-64-v3"), "on x86_64 with a CPU of class x86-64-v3"),
            (job_for(KEY, isa_class="armv8.0", emulation="qemu:a72"), "that emulates armv8.0 by qemu:a72"),
        ],
        ids=["engine", "arch", "toolchain", "isa_class", "emulation"],
    )
    async def test_a_job_that_no_worker_can_build_waits_unrouted_and_says_for_what(
        self, queue: RedisJobQueue, job: object, text: str
    ) -> None:
        await queue.heartbeat(worker_record(toolchain={"onnxruntime": "1.0"}))

        build = await queue.submit(job)  # type: ignore[arg-type]

        assert build.phase == BUILD_PHASE_UNROUTED
        assert text in build.message
        assert await queue.claim(worker_record(toolchain={"onnxruntime": "1.0"}), wait_s=0) is None

    async def test_a_job_without_an_arch_goes_to_any_worker_of_its_engine(self, queue: RedisJobQueue) -> None:
        await queue.submit(job_for(KEY, arch="", toolchain={"onnxruntime": "1.0"}))

        lease = await queue.claim(worker_record(arch="aarch64", toolchain={"onnxruntime": "1.0", "x": "2"}), wait_s=0)

        assert lease is not None

    async def test_a_job_goes_only_to_a_worker_with_the_cpu_or_the_emulation_that_its_gate_needs(
        self, queue: RedisJobQueue
    ) -> None:
        emulating = worker_record("w2")
        emulating.emulates.add(name="qemu:a72", isa_class="armv8.0", arch="aarch64")
        own, other = job_for(KEY, isa_class="x86-64-v1"), key_of("emulated")
        await queue.submit(job_for(other, isa_class="armv8.0", emulation="qemu:a72", arch=""))

        assert await queue.claim(worker_record(), wait_s=0) is None
        await queue.submit(own)
        native, emulated = await claimed(queue), await queue.claim(emulating, wait_s=0)

        assert native.job == own
        assert emulated is not None
        assert emulated.job.artifact_key == other

    async def test_an_unrouted_job_is_queued_when_a_capable_worker_appears(self, queue: RedisJobQueue) -> None:
        assert (await queue.submit(job_for(KEY))).phase == BUILD_PHASE_UNROUTED
        events = queue.watch([KEY])
        assert (await anext(events)).build.phase == BUILD_PHASE_UNROUTED

        await queue.heartbeat(worker_record(engines=["openvino"]))
        await queue.heartbeat(worker_record("w2"))

        assert (await anext(events)).build.phase == BUILD_PHASE_QUEUED
        assert [worker.id for worker in await queue.workers()] == ["w1", "w2"]
        await events.aclose()  # type: ignore[attr-defined]

    async def test_a_queued_job_is_unrouted_when_its_last_worker_is_gone(
        self, redis: RedisConnection, documents: DiskDocumentStore
    ) -> None:
        queue = RedisJobQueue(redis, documents, policy=QueuePolicy(worker_ttl_s=0.05))
        await queue.heartbeat(worker_record())
        assert (await queue.submit(job_for(KEY))).phase == BUILD_PHASE_QUEUED

        other = RedisJobQueue(redis, documents)
        async with asyncio.timeout(WAIT_S):
            while any(worker.id == "w1" for worker in await queue.workers()):
                await other.claim(worker_record("w2", engines=["openvino"]), wait_s=0.02)

        build = await queue.get(KEY)
        assert build is not None
        assert build.phase == BUILD_PHASE_UNROUTED

    async def test_a_waiting_claim_wakes_up_when_a_job_is_ordered(self, queue: RedisJobQueue) -> None:
        waiting = asyncio.ensure_future(queue.claim(worker_record(), wait_s=WAIT_S))
        async with asyncio.timeout(WAIT_S):
            while not await queue.workers():  # until the claim has asked once
                await asyncio.sleep(0)

        await queue.submit(job_for(KEY))

        lease = await asyncio.wait_for(waiting, WAIT_S / 4)
        assert lease is not None


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
        self, queue: RedisJobQueue, hasty: RedisJobQueue
    ) -> None:
        await queue.submit(job_for(KEY))
        for attempt in (1, 2, 3):
            assert (await claimed(hasty, f"w{attempt}", wait_s=WAIT_S)).attempt == attempt

        assert await queue.claim(worker_record("w4"), wait_s=3 * TINY_LEASE_S) is None

        build = await queue.submit(job_for(KEY))
        assert (build.phase, build.cached, build.attempts) == (BUILD_PHASE_FAILED, True, 3)
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


class TestWatching:
    async def test_every_phase_is_seen_to_the_end(self, queue: RedisJobQueue) -> None:
        await queue.heartbeat(worker_record())
        await queue.submit(job_for(KEY))
        events = queue.watch([KEY])
        first = await anext(events)
        lease = await claimed(queue)
        for phase in (BUILD_PHASE_BUILDING, BUILD_PHASE_GATING, BUILD_PHASE_MEASURING, BUILD_PHASE_PUBLISHING):
            await queue.progress(lease, build_in(phase, f"in {phase}"))
        assert await published(queue, lease)

        seen = [first, *await watched(events)]

        assert phases(seen) == [1, 3, 3, 4, 5, 6, 7]
        assert [event.build.message for event in seen[2:6]] == ["in 3", "in 4", "in 5", "in 6"]
        assert [event.build.fraction for event in seen[4:]] == [0.5, 0.5, 1.0]
        assert all(event.build.model == "digits" for event in seen)
        ids = [tuple(int(part) for part in event.event_id.split("-")) for event in seen]
        assert ids == sorted(ids)

    async def test_watching_again_from_an_event_goes_on_behind_it(self, queue: RedisJobQueue) -> None:
        await queue.submit(job_for(KEY))
        lease = await claimed(queue)
        events = queue.watch([KEY])
        position = (await anext(events)).event_id
        await events.aclose()  # type: ignore[attr-defined]
        await queue.progress(lease, build_in(BUILD_PHASE_GATING))
        assert await published(queue, lease)

        resumed = await watched(queue.watch([KEY], after=position))
        at_the_end = await watched(queue.watch([KEY], after=resumed[-1].event_id))

        assert phases(resumed) == [BUILD_PHASE_GATING, BUILD_PHASE_READY]
        assert phases(at_the_end) == [BUILD_PHASE_READY]

    async def test_several_builds_are_watched_until_the_last_has_ended(self, queue: RedisJobQueue) -> None:
        for name in ("one", "two"):
            await queue.submit(job_for(key_of(name)))
        watching = asyncio.ensure_future(watched(queue.watch([key_of("one"), key_of("two")])))
        for _ in range(2):
            assert await published(queue, await claimed(queue))

        seen = await watching

        ended = [event.build.artifact_key for event in seen if event.build.phase == BUILD_PHASE_READY]
        assert sorted(ended) == sorted([key_of("one"), key_of("two")])

    async def test_a_watcher_whose_events_were_trimmed_still_sees_the_end(
        self, queue: RedisJobQueue, redis: RedisConnection
    ) -> None:
        await queue.submit(job_for(KEY))
        events = queue.watch([KEY])
        await anext(events)
        assert await published(queue, await claimed(queue))
        await redis.call("XTRIM", "{dovetail}:events", "MAXLEN", 0)

        assert phases(await watched(events)) == [BUILD_PHASE_READY]

    async def test_an_unknown_build_is_not_found(self, queue: RedisJobQueue) -> None:
        with pytest.raises(NotFoundError, match="no build"):
            await anext(queue.watch([KEY]))

    async def test_losing_redis_ends_a_watch_with_unavailable(
        self, redis_factory: Callable[..., RedisServer], documents: DiskDocumentStore
    ) -> None:
        server = redis_factory()
        redis = connect(server.url)
        queue = RedisJobQueue(redis, documents)
        await queue.submit(job_for(KEY))
        events = queue.watch([KEY])
        await anext(events)
        waiting = asyncio.ensure_future(anext(events))

        server.stop()

        with pytest.raises(UnavailableError, match="does not answer"):
            await asyncio.wait_for(waiting, WAIT_S)
        await redis.aclose()

    async def test_builds_are_listed_newest_first_and_by_model(self, queue: RedisJobQueue) -> None:
        await queue.submit(job_for(key_of("a"), model="digits"))
        await queue.submit(job_for(key_of("b"), model="digits", version=2))
        await queue.submit(job_for(key_of("c"), model="other"))

        builds = await queue.list()

        assert len(builds) == 3
        assert [build.created_at_ms for build in builds] == sorted((b.created_at_ms for b in builds), reverse=True)
        assert [build.artifact_key for build in await queue.list("digits", 2)] == [key_of("b")]
        assert len(await queue.list("digits")) == 2
