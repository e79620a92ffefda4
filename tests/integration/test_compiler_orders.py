# SPDX-License-Identifier: Apache-2.0
"""Ordering builds from the compiler service: what is built, what cannot be, and what a watcher is told."""

from __future__ import annotations

import asyncio

import grpc

from dovetail.pb.v1 import compiler_pb2
from tests.fakes.compiler_mesh import Mesh, machine_of, register_digits, worker
from tests.fakes.scripted_build import ScriptedBuild
from tests.fixtures_compiler import XEON, drained, mesh, refused

__all__ = ["mesh"]

Status = grpc.StatusCode


async def test_orders_that_cannot_be_met_say_why(mesh: Mesh) -> None:
    await register_digits(mesh, "digits")
    await register_digits(mesh, "bare", calibration=False)
    xeon = XEON.to_bytes()

    for (model, recipe, fingerprint), code, text in (
        (("nothing", "ort-fp32", xeon), Status.NOT_FOUND, "nothing"),
        (("digits", "ort-fp8", xeon), Status.NOT_FOUND, "it can use: "),
        (("digits", "ort-fp8", xeon), Status.NOT_FOUND, "ort-int8-dynamic"),
        (("bare", "ort-int8-static-u8s8-rr", xeon), Status.FAILED_PRECONDITION, "--calibration"),
        (("digits", "ort-fp32", b"{}"), Status.INVALID_ARGUMENT, "fingerprint"),
        (("digits", "ort-fp32", b""), Status.UNAVAILABLE, "no build worker is alive"),
    ):
        found, said = await refused(mesh.compile(model, recipe, fingerprint_json=fingerprint))
        assert found is code, said
        assert text in said


async def test_order_without_a_worker_is_unrouted_and_not_queued(mesh: Mesh) -> None:
    await register_digits(mesh)

    events = await mesh.compile("digits", "ort-fp32", fingerprint_json=XEON.to_bytes())

    assert [(event.build.phase, event.build.artifact_key) for event in events] == [
        (compiler_pb2.BUILD_PHASE_UNROUTED, "")
    ]
    assert "a worker with engine onnxruntime" in events[0].build.message
    assert list(await mesh.storage.jobs.list()) == []
    (kept,) = (await mesh.compiler.ListBuilds(compiler_pb2.ListBuildsRequest())).builds
    assert (kept.phase, kept.message) == (compiler_pb2.BUILD_PHASE_UNROUTED, events[0].build.message)


async def test_order_for_a_foreign_machine_names_the_worker_it_needs(mesh: Mesh) -> None:
    await register_digits(mesh)

    async with worker(mesh, XEON, run=ScriptedBuild()):
        events = await mesh.compile(
            "digits", "ort-int8-static-s8s8", fingerprint_json=machine_of("raspberry-pi-5").to_bytes()
        )

    assert [event.build.phase for event in events] == [compiler_pb2.BUILD_PHASE_UNROUTED]
    assert "on aarch64" in events[0].build.message
    assert "worker-1 cannot run it" in events[0].build.message


async def test_compile_without_a_machine_builds_for_the_workers_class(mesh: Mesh) -> None:
    await register_digits(mesh)

    async with worker(mesh, XEON, run=ScriptedBuild()) as record:
        events = await mesh.compile("digits")
        builds = (await mesh.compiler.ListBuilds(compiler_pb2.ListBuildsRequest(model="digits"))).builds

    ended = {event.build.recipe.name: event.build for event in events if event.build.phase == 7}
    assert {"ort-fp32", "ort-int8-dynamic", "ort-int8-static-u8s8-rr"} <= set(ended)
    assert {build.hardware_class for build in ended.values()} == {record.hardware_class}
    assert {build.artifact_key for build in builds} == {build.artifact_key for build in ended.values()}


async def test_watching_compile_ends_when_the_server_stops(mesh: Mesh) -> None:
    await register_digits(mesh)
    hold = asyncio.Event()

    async with worker(mesh, XEON, run=ScriptedBuild(hold=hold)):
        events = aiter(mesh.compiler.Compile(compiler_pb2.CompileRequest(model="digits", recipes=["ort-fp32"])))
        await anext(events)
        reading = asyncio.ensure_future(refused(drained(events)))
        await asyncio.wait_for(mesh.rpc.stop(grace_s=60), 20)  # the stream must not use up the grace
        code, text = await reading
        hold.set()

    assert code is Status.UNAVAILABLE
    assert "this server is stopping" in text
