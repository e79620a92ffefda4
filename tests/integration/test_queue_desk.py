# SPDX-License-Identifier: Apache-2.0
"""The queue over gRPC: who orders with which priority, what is listed, and trying again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dovetail.errors import InvalidInputError, NotFoundError, PreconditionError
from dovetail.pb.v1 import artifacts_pb2
from dovetail.pb.v1 import compiler_pb2 as pb
from dovetail.rpc.status import translated_errors
from tests.fakes.compiler_mesh import Mesh, compiler_mesh, machine_of, register_digits, worker
from tests.fakes.queue_work import claimed
from tests.fakes.records import failure_of, job_for, key_of, worker_record
from tests.fakes.scripted_build import ScriptedBuild

XEON = machine_of("xeon-skylake-no-vnni")
INFRASTRUCTURE = pb.BUILD_FAILURE_KIND_INFRASTRUCTURE


@pytest.fixture
async def mesh(redis_url: str, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with compiler_mesh(redis_url, tmp_path) as running:
        await register_digits(running)
        yield running


async def jobs(mesh: Mesh, **fields: Any) -> pb.ListJobsResponse:
    listed: pb.ListJobsResponse = await mesh.compiler.ListJobs(pb.ListJobsRequest(**fields))
    return listed


async def died(mesh: Mesh, *names: str) -> None:
    queue = mesh.storage.jobs
    for name in names:
        await queue.submit(job_for(key_of(name)))
        assert await queue.fail(await claimed(queue), failure_of(INFRASTRUCTURE, "the disk is gone"), pb.Build())
    await queue.leave("w1")


@pytest.mark.parametrize(
    ("asked", "given"),
    [(0, pb.BUILD_PRIORITY_INTERACTIVE), (pb.BUILD_PRIORITY_BACKGROUND, pb.BUILD_PRIORITY_BACKGROUND)],
)
async def test_an_order_has_a_persons_priority_unless_it_says_another(mesh: Mesh, asked: int, given: int) -> None:
    hold = asyncio.Event()
    script = ScriptedBuild(hold=hold)

    async with worker(mesh, XEON, run=script):
        ordering = asyncio.ensure_future(
            mesh.compile("digits", "ort-fp32", fingerprint_json=XEON.to_bytes(), priority=asked)
        )
        await script.started.wait()
        (job,) = (await jobs(mesh)).jobs
        hold.set()
        events = await ordering

    assert job.build.priority == given
    assert {event.builds for event in events} == {1}


async def test_what_a_node_has_nothing_without_is_ordered_with_a_nodes_priority(mesh: Mesh) -> None:
    question = artifacts_pb2.NegotiateRequest(model="digits", fingerprint_json=XEON.to_bytes(), order_builds=True)

    async with worker(mesh, XEON, run=ScriptedBuild(hold=asyncio.Event()), drain_s=0):
        await mesh.artifacts.Negotiate(question)
        waited_for = {job.build.priority for job in (await jobs(mesh)).jobs}

    assert waited_for == {pb.BUILD_PRIORITY_NODE}


async def test_what_would_only_be_better_than_what_a_node_has_is_background_work(mesh: Mesh) -> None:
    question = artifacts_pb2.NegotiateRequest(model="digits", fingerprint_json=XEON.to_bytes(), order_builds=True)

    async with worker(mesh, XEON, run=ScriptedBuild()):
        await mesh.compile("digits", "ort-fp32", fingerprint_json=XEON.to_bytes())
    async with worker(mesh, XEON, run=ScriptedBuild(hold=asyncio.Event()), drain_s=0, worker_id="worker-2"):
        offer = await mesh.artifacts.Negotiate(question)
        improvements = {job.build.priority for job in (await jobs(mesh)).jobs if job.build.artifact_key}

    assert offer.choice
    assert improvements == {pb.BUILD_PRIORITY_BACKGROUND}


async def test_a_priority_that_is_none_is_refused(mesh: Mesh) -> None:
    with pytest.raises(InvalidInputError, match="priority number 9"), translated_errors():
        await mesh.compile("digits", priority=9)


async def test_orders_without_a_worker_are_in_the_queue_with_what_they_need(mesh: Mesh) -> None:
    async with worker(mesh, XEON, run=ScriptedBuild()):
        l4 = machine_of("nvidia-l4")
        await mesh.compile("digits", "tensorrt-fp16", fingerprint_json=l4.to_bytes())

    listed = await jobs(mesh)

    (job,) = listed.jobs
    assert (job.wait, job.build.artifact_key, listed.total) == (pb.JOB_WAIT_NO_WORKER, "", 1)
    assert "tensorrt" in job.why
    assert (await jobs(mesh, hardware_class="elsewhere")).total == 0


async def test_all_dead_jobs_are_tried_again_at_once(mesh: Mesh) -> None:
    await died(mesh, "a", "b")
    assert (await jobs(mesh, dead=True)).total == 2

    reply = await mesh.compiler.RetryJobs(pb.RetryJobsRequest(all_dead=True))

    assert sorted(build.artifact_key for build in reply.builds) == sorted([key_of("a"), key_of("b")])
    assert {build.phase for build in reply.builds} == {pb.BUILD_PHASE_UNROUTED}
    assert (await jobs(mesh, dead=True)).total == 0
    assert (await jobs(mesh)).total == 2


async def test_a_named_job_is_tried_again_before_others(mesh: Mesh) -> None:
    await died(mesh, "a", "b")

    await mesh.compiler.RetryJobs(pb.RetryJobsRequest(artifact_keys=[key_of("b")]))
    lease = await mesh.storage.jobs.claim(worker_record("w2"), wait_s=0)

    assert lease is not None
    assert lease.job.artifact_key == key_of("b")


@pytest.mark.parametrize(
    ("request_fields", "error"),
    [
        ({}, InvalidInputError),
        ({"artifact_keys": ["a" * 64], "all_dead": True}, InvalidInputError),
        ({"artifact_keys": ["zz"]}, InvalidInputError),
        ({"artifact_keys": ["a" * 64]}, NotFoundError),
        ({"artifact_keys": [key_of("waiting")]}, PreconditionError),
    ],
    ids=["nothing", "both", "no key", "unknown", "not ended"],
)
async def test_what_cannot_be_tried_again_is_refused(
    mesh: Mesh, request_fields: dict[str, Any], error: type[Exception]
) -> None:
    with suppress(NotFoundError):
        await mesh.storage.jobs.submit(job_for(key_of("waiting")))

    with pytest.raises(error), translated_errors():
        await mesh.compiler.RetryJobs(pb.RetryJobsRequest(**request_fields))
