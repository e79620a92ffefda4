# SPDX-License-Identifier: Apache-2.0
"""What an operator sees of the queue: what waits and why, who builds what, what died and how, and trying it again."""

from __future__ import annotations

import pytest

from compiler_svc.jobs.policy import QueuePolicy
from compiler_svc.jobs.redis_jobs import RedisJobQueue
from dovetail.errors import NotFoundError, PreconditionError
from dovetail.pb.v1.compiler_pb2 import (
    BUILD_FAILURE_KIND_DETERMINISTIC,
    BUILD_FAILURE_KIND_INFRASTRUCTURE,
    BUILD_PHASE_FAILED,
    BUILD_PHASE_QUEUED,
    BUILD_PRIORITY_INTERACTIVE,
    JOB_WAIT_BACK_OFF,
    JOB_WAIT_IN_LINE,
    JOB_WAIT_NO_WORKER,
    JOB_WAIT_UNSPECIFIED,
    JOB_WAIT_WORKERS_BUSY,
    Build,
    Job,
)
from dovetail.store.disk import DiskDocumentStore
from dovetail.store.redis_connection import RedisConnection
from tests.fakes.queue_work import WAIT_S, claimed, published
from tests.fakes.records import failure_of, job_for, key_of, worker_record
from tests.fixtures_jobs import TINY_LEASE_S

KEY, OTHER = key_of("a"), key_of("b")
AT_ONCE = QueuePolicy(retry_after_s=0.02)


@pytest.fixture
def losing(redis: RedisConnection, documents: DiskDocumentStore) -> RedisJobQueue:
    """The queue for workers that are lost almost at once; backs off for next to nothing."""
    return RedisJobQueue(redis, documents, policy=AT_ONCE, lease_s=TINY_LEASE_S)


async def lost_three_times(losing: RedisJobQueue) -> None:
    """Claimed by three workers, which never answer again."""
    for number in (1, 2, 3):
        await claimed(losing, f"lost-{number}", wait_s=WAIT_S)
    assert await losing.claim(worker_record("watchman"), wait_s=3 * TINY_LEASE_S) is None


async def only(queue: RedisJobQueue, **which: bool | str) -> Job:
    found = await queue.overview(**which)  # type: ignore[arg-type]
    assert (len(found.jobs), found.total) == (1, 1)
    return found.jobs[0]


class TestWaiting:
    async def test_a_job_says_why_it_waits(self, queue: RedisJobQueue) -> None:
        await queue.submit(job_for(KEY, hardware_class="class-a"))
        unrouted = await only(queue)
        await queue.heartbeat(worker_record("w1"))
        in_line = await only(queue)
        await queue.submit(job_for(OTHER, priority=1))
        await claimed(queue, "w1")

        running, busy = (await queue.overview()).jobs

        assert (unrouted.wait, list(unrouted.able_workers)) == (JOB_WAIT_NO_WORKER, [])
        assert "engine onnxruntime on x86_64" in unrouted.why
        assert (in_line.wait, list(in_line.able_workers)) == (JOB_WAIT_IN_LINE, ["w1"])
        assert (running.wait, running.worker, running.build.artifact_key) == (JOB_WAIT_UNSPECIFIED, "w1", OTHER)
        assert running.lease_until_ms > running.build.updated_at_ms
        assert (busy.wait, busy.why) == (JOB_WAIT_WORKERS_BUSY, "the one worker that can build it (w1) is busy")

    async def test_a_worker_that_builds_two_at_once_is_busy_with_the_second(self, queue: RedisJobQueue) -> None:
        double = worker_record()
        double.concurrency = 2
        for name in "abc":
            await queue.submit(job_for(key_of(name)))
        await queue.claim(double, wait_s=0)
        one = (await queue.overview()).jobs[-1].wait
        await queue.claim(double, wait_s=0)

        assert (one, (await queue.overview()).jobs[-1].wait) == (JOB_WAIT_IN_LINE, JOB_WAIT_WORKERS_BUSY)

    async def test_waiting_jobs_come_in_the_order_in_which_they_are_taken_and_by_class(
        self, queue: RedisJobQueue
    ) -> None:
        for name, priority in (("rest", 3), ("person", 1), ("node", 2)):
            await queue.submit(job_for(key_of(name), priority=priority, hardware_class=f"class-{name}"))

        listed = [job.build.artifact_key for job in (await queue.overview()).jobs]

        assert listed == [key_of(name) for name in ("person", "node", "rest")]
        assert (await only(queue, hardware_class="class-n")).build.artifact_key == key_of("node")

    async def test_workers_are_listed_with_what_they_build(self, queue: RedisJobQueue) -> None:
        await queue.submit(job_for(KEY))
        await claimed(queue, "w1")
        await queue.heartbeat(worker_record("w2", toolchain={"onnxruntime/onnxruntime": "1.0"}))

        busy, idle = await queue.staff()

        assert (busy.id, [build.artifact_key for build in busy.builds]) == ("w1", [KEY])
        assert (idle.id, list(idle.builds), dict(idle.toolchain)) == ("w2", [], {"onnxruntime/onnxruntime": "1.0"})
        assert idle.concurrency == 1
        assert 0 <= idle.now_ms - idle.last_seen_ms < 30_000


class TestDead:
    async def test_a_job_that_lost_three_workers_is_listed_with_every_attempt_and_others_go_on(
        self, queue: RedisJobQueue, losing: RedisJobQueue
    ) -> None:
        await queue.submit(job_for(KEY, priority=1))
        await queue.submit(job_for(OTHER, arch="aarch64"))
        await lost_three_times(losing)

        dead = await only(queue, dead=True)
        other = await queue.claim(worker_record("w9", arch="aarch64"), wait_s=0)

        assert dead.build.phase == BUILD_PHASE_FAILED
        assert dead.build.failure.kind == BUILD_FAILURE_KIND_INFRASTRUCTURE
        assert [attempt.worker for attempt in dead.attempts] == ["lost-1", "lost-2", "lost-3"]
        assert all(attempt.ended_ms >= attempt.began_ms > 0 for attempt in dead.attempts)
        assert ["stopped answering in attempt" in attempt.why for attempt in dead.attempts] == [True] * 3
        assert other is not None
        assert await published(queue, other)

    async def test_a_job_that_lost_two_workers_waits_before_it_may_take_a_third(
        self, redis: RedisConnection, documents: DiskDocumentStore
    ) -> None:
        wary = RedisJobQueue(redis, documents, policy=QueuePolicy(retry_after_s=1000), lease_s=TINY_LEASE_S)
        await wary.submit(job_for(KEY))
        for number in (1, 2):
            await claimed(wary, f"w{number}", wait_s=WAIT_S)

        assert await wary.claim(worker_record("w3"), wait_s=3 * TINY_LEASE_S) is None

        job = await only(wary)
        assert (job.build.phase, job.wait) == (BUILD_PHASE_QUEUED, JOB_WAIT_BACK_OFF)
        assert job.not_before_ms > job.build.updated_at_ms
        assert "backs off for" in job.why

    async def test_a_dead_job_is_tried_again_as_it_was_ordered_with_all_attempts_before_it(
        self, queue: RedisJobQueue, losing: RedisJobQueue
    ) -> None:
        await queue.submit(job_for(KEY))
        await lost_three_times(losing)

        build = await queue.retry(KEY, BUILD_PRIORITY_INTERACTIVE)
        lease = await claimed(queue, "w4")

        assert (build.phase, build.attempts, build.priority) == (BUILD_PHASE_QUEUED, 0, BUILD_PRIORITY_INTERACTIVE)
        assert (lease.job.artifact_key, lease.attempt) == (KEY, 1)
        assert (await queue.overview(dead=True)).total == 0
        assert [attempt.worker for attempt in (await only(queue)).attempts][-2:] == ["lost-3", "w4"]
        assert await published(queue, lease)

    async def test_only_what_failed_for_infrastructure_is_dead(self, queue: RedisJobQueue) -> None:
        for name, kind in (("model", BUILD_FAILURE_KIND_DETERMINISTIC), ("store", BUILD_FAILURE_KIND_INFRASTRUCTURE)):
            await queue.submit(job_for(key_of(name)))
            assert await queue.fail(await claimed(queue), failure_of(kind, f"the {name} did it"), Build())

        dead = await only(queue, dead=True)

        assert dead.build.artifact_key == key_of("store")
        assert [attempt.why for attempt in dead.attempts] == ["the store did it"]

    async def test_what_runs_is_ready_or_never_was_cannot_be_tried_again(self, queue: RedisJobQueue) -> None:
        with pytest.raises(NotFoundError, match="no job"):
            await queue.retry(KEY, BUILD_PRIORITY_INTERACTIVE)
        await queue.submit(job_for(KEY))
        lease = await claimed(queue)
        with pytest.raises(PreconditionError, match="it is building"):
            await queue.retry(KEY, BUILD_PRIORITY_INTERACTIVE)
        assert await published(queue, lease)
        with pytest.raises(PreconditionError, match="it is ready"):
            await queue.retry(KEY, BUILD_PRIORITY_INTERACTIVE)
