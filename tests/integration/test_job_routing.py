# SPDX-License-Identifier: Apache-2.0
"""Which worker gets which job, and when: capabilities, priorities, places in line."""

from __future__ import annotations

import asyncio

import pytest

from compiler_svc.jobs.policy import QueuePolicy
from compiler_svc.jobs.redis_jobs import RedisJobQueue
from dovetail.pb.v1.compiler_pb2 import (
    BUILD_PHASE_QUEUED,
    BUILD_PHASE_UNROUTED,
)
from dovetail.store.disk import DiskDocumentStore
from dovetail.store.redis_connection import RedisConnection
from tests.fakes.queue_work import WAIT_S, claimed
from tests.fakes.records import job_for, key_of, worker_record
from tests.fixtures_jobs import TINY_LEASE_S

KEY = key_of("a")


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

    async def test_a_draining_worker_gets_nothing_and_one_that_left_is_forgotten_at_once(
        self, queue: RedisJobQueue
    ) -> None:
        draining = worker_record()
        draining.draining = True
        await queue.heartbeat(draining)

        assert (await queue.submit(job_for(KEY))).phase == BUILD_PHASE_UNROUTED
        assert await queue.claim(draining, wait_s=0) is None
        assert [(worker.id, worker.draining) for worker in await queue.staff()] == [("w1", True)]

        await queue.heartbeat(worker_record("w2"))
        queued = await queue.get(KEY)
        await queue.leave("w2")
        left = await queue.get(KEY)

        assert queued is not None
        assert left is not None
        assert (queued.phase, left.phase) == (BUILD_PHASE_QUEUED, BUILD_PHASE_UNROUTED)
        assert [worker.id for worker in await queue.workers()] == ["w1"]


class TestPriorities:
    async def test_who_is_waited_for_by_a_person_goes_first_then_nodes_then_the_rest(
        self, queue: RedisJobQueue
    ) -> None:
        for name, priority in (("rest", 3), ("node", 2), ("person", 1), ("later node", 0)):
            await queue.submit(job_for(key_of(name), priority=priority))

        taken = [(await claimed(queue)).job.artifact_key for _ in range(4)]

        assert taken == [key_of(name) for name in ("person", "node", "later node", "rest")]

    async def test_ordering_a_job_again_raises_its_priority_and_never_lowers_it(self, queue: RedisJobQueue) -> None:
        for name in ("first", "second"):
            await queue.submit(job_for(key_of(name), priority=2))

        raised = await queue.submit(job_for(key_of("second"), priority=1))
        lowered = await queue.submit(job_for(key_of("second"), priority=3))

        assert (raised.priority, lowered.priority) == (1, 1)
        assert (await claimed(queue)).job.artifact_key == key_of("second")

    async def test_every_fourth_job_is_the_one_that_waited_longest(self, queue: RedisJobQueue) -> None:
        await queue.submit(job_for(key_of("patient"), priority=3))
        for number in range(8):
            await queue.submit(job_for(key_of(f"urgent {number}"), priority=1))

        taken = [(await claimed(queue)).job.artifact_key for _ in range(4)]

        assert taken == [*(key_of(f"urgent {number}") for number in range(3)), key_of("patient")]

    async def test_a_job_that_lost_its_worker_keeps_its_place(self, queue: RedisJobQueue, hasty: RedisJobQueue) -> None:
        for name in ("first", "second"):
            await queue.submit(job_for(key_of(name)))
        await claimed(hasty)
        await asyncio.sleep(2 * TINY_LEASE_S)

        assert (await claimed(queue, "w2")).job.artifact_key == key_of("first")

    async def test_a_job_that_nobody_can_build_holds_up_no_other(self, queue: RedisJobQueue) -> None:
        await queue.submit(job_for(key_of("rare"), toolchain={"onnxruntime": "9.9"}, priority=1))
        await queue.submit(job_for(KEY, priority=3))

        assert (await claimed(queue)).job.artifact_key == KEY

    async def test_a_waiting_claim_does_not_ask_again_for_jobs_of_other_engines(
        self, queue: RedisJobQueue, redis: RedisConnection
    ) -> None:
        waiting = asyncio.ensure_future(queue.claim(worker_record(), wait_s=WAIT_S))
        async with asyncio.timeout(WAIT_S):
            while not await queue.workers():
                await asyncio.sleep(0)
        await redis.call("CONFIG", "RESETSTAT")
        for number in range(20):
            await queue.submit(job_for(key_of(str(number)), engine="tensorrt"))
        await queue.submit(job_for(KEY))

        lease = await asyncio.wait_for(waiting, WAIT_S)

        assert lease is not None
        assert lease.job.artifact_key == KEY
        scripts = (await redis.call("INFO", "commandstats"))["cmdstat_evalsha"]["calls"]
        assert scripts < 30  # 21 orders, and one claim more
