# SPDX-License-Identifier: Apache-2.0
"""GPU orders over the real service: they wait with a reason, something stands in, and a worker that comes gets them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from compiler_svc.planning import PlannedBuild
from dovetail.client import connect_async
from dovetail.pb.v1 import artifacts_pb2, compiler_pb2, registry_pb2
from tests.fakes.compiler_mesh import Mesh, compiler_mesh, register_digits
from tests.fakes.gpu_fleet import H100, L4_11, allowing, worker_with

TARGET, NEW = allowing(H100), worker_with("trt11", allowing(L4_11))
NATIVE, PORTABLE = "tensorrt-fp16", "tensorrt-fp16-portable"


@pytest.fixture
async def mesh(redis_url: str, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with compiler_mesh(redis_url, tmp_path) as running:
        await register_digits(running)
        yield running


async def better(mesh: Mesh) -> dict[str, artifacts_pb2.BuildOrder]:
    question = artifacts_pb2.NegotiateRequest(model="digits", fingerprint_json=TARGET.to_bytes(), order_builds=True)
    offer = await mesh.artifacts.Negotiate(question)
    return {item.recipe.name: item for item in offer.better}


async def test_native_plan_waits_a_portable_one_is_ordered_and_a_worker_with_the_gpu_gets_the_order(mesh: Mesh) -> None:
    await mesh.storage.jobs.heartbeat(NEW)
    waiting = await better(mesh)

    assert "NVIDIA H100" in waiting[NATIVE].needs_worker
    assert (waiting[NATIVE].artifact_key, waiting[NATIVE].phase) == ("", compiler_pb2.BUILD_PHASE_UNSPECIFIED)
    assert waiting[PORTABLE].phase == compiler_pb2.BUILD_PHASE_QUEUED
    assert waiting["ort-fp32"].phase == compiler_pb2.BUILD_PHASE_QUEUED

    await mesh.storage.jobs.heartbeat(worker_with("hopper", TARGET))
    ordered = await better(mesh)

    assert ordered[NATIVE].needs_worker == ""
    assert ordered[NATIVE].phase == compiler_pb2.BUILD_PHASE_QUEUED


async def test_compile_tells_what_waits_and_builds_what_stands_in(mesh: Mesh) -> None:
    await mesh.storage.jobs.heartbeat(NEW)

    async with connect_async(f"127.0.0.1:{mesh.rpc.port}") as client:
        told = {}
        async for event in client.compile("digits", fingerprint=TARGET):
            told[event.build.recipe.name] = event.build
            if {NATIVE, PORTABLE} <= told.keys():
                break

    assert told[NATIVE].phase == "unrouted"
    assert "it needs a worker with engine tensorrt, device cuda, TensorRT 11.4.1.5" in told[NATIVE].message
    assert told[PORTABLE].phase == "queued"


async def test_recipes_asked_for_by_name_get_no_stand_in(mesh: Mesh) -> None:
    await mesh.storage.jobs.heartbeat(NEW)

    events = await mesh.compile("digits", NATIVE, fingerprint_json=TARGET.to_bytes())

    assert [event.build.recipe.name for event in events] == [NATIVE]


async def waiting(mesh: Mesh, **fields: str | int) -> dict[str, compiler_pb2.Build]:
    reply = await mesh.compiler.ListBuilds(compiler_pb2.ListBuildsRequest(**fields))
    return {build.recipe.name: build for build in reply.builds if build.phase == compiler_pb2.BUILD_PHASE_UNROUTED}


async def test_order_that_nobody_covers_is_kept_shown_and_placed_when_a_worker_comes(mesh: Mesh) -> None:
    jobs, orders = mesh.storage.jobs, mesh.storage.waiting
    await jobs.heartbeat(NEW)
    placed = []

    async def submit(plan: PlannedBuild) -> None:
        assert plan.job is not None
        placed.append(plan.recipe.name)
        await jobs.submit(plan.job)

    await mesh.compile("digits", NATIVE, fingerprint_json=TARGET.to_bytes())
    shown = await waiting(mesh, model="digits")
    nobody = await orders.place(submit)
    await jobs.heartbeat(worker_with("hopper", TARGET))
    somebody = await orders.place(submit)

    assert (shown[NATIVE].version, shown[NATIVE].artifact_key) == (1, "")
    assert "NVIDIA H100" in shown[NATIVE].message
    assert shown[NATIVE].message.startswith("no live worker can build it, so the order waits: it needs a worker with")
    assert (nobody, somebody, placed) == (0, 1, [NATIVE])
    assert await waiting(mesh) == {}
    assert [build.recipe.name for build in await jobs.list("digits")] == [NATIVE]


async def test_order_that_waits_is_forgotten_with_its_model_and_when_it_is_placed_by_hand(mesh: Mesh) -> None:
    await register_digits(mesh, "other")
    await mesh.storage.jobs.heartbeat(NEW)
    for model in ("digits", "other"):
        await mesh.compile(model, NATIVE, fingerprint_json=TARGET.to_bytes())
    before = [item.model for item, _ in await mesh.storage.waiting.waiting()]

    await mesh.models.DeleteModel(registry_pb2.DeleteModelRequest(name="other"))
    await mesh.storage.jobs.heartbeat(worker_with("hopper", TARGET))
    async with connect_async(f"127.0.0.1:{mesh.rpc.port}") as client:
        async for _ in client.compile("digits", recipes=[NATIVE], fingerprint=TARGET):
            break

    assert before == ["digits", "other"]
    assert await mesh.storage.waiting.waiting() == []


async def test_service_places_waiting_orders_by_itself(mesh: Mesh) -> None:
    await mesh.storage.jobs.heartbeat(NEW)
    await mesh.compile("digits", NATIVE, fingerprint_json=TARGET.to_bytes())
    await mesh.storage.jobs.heartbeat(worker_with("hopper", TARGET))
    submitted: asyncio.Queue[str] = asyncio.Queue()

    async def submit(plan: PlannedBuild) -> None:
        submitted.put_nowait(plan.recipe.name)

    looking = asyncio.create_task(mesh.storage.waiting.run(submit, look_s=0.01))
    try:
        assert await asyncio.wait_for(submitted.get(), 20) == NATIVE
    finally:
        looking.cancel()
