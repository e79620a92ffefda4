# SPDX-License-Identifier: Apache-2.0
"""The worker: from a claim to exactly one visible end, whatever happens on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from compiler_svc.jobs.base import Lease
from compiler_svc.jobs.redis_jobs import RedisJobQueue
from compiler_svc.worker.child_failure import ChildFailure, FailureKind
from compiler_svc.worker.sandbox import run_task
from dovetail.artifact import Manifest
from dovetail.errors import DovetailError
from dovetail.gate import GateReport
from dovetail.layers import Layer, LayerReport
from dovetail.negotiation import check
from dovetail.pb.v1 import artifacts_pb2, compiler_pb2
from tests.fakes.compiler_mesh import Mesh, compiler_mesh, machine_of, register_digits, worker
from tests.fakes.scripted_build import ScriptedBuild
from tests.fixtures_redis import RedisServer

XEON = machine_of("xeon-skylake-no-vnni")
READY, FAILED, CANCELLED = 7, 8, 9
UNROUTED = compiler_pb2.BUILD_PHASE_UNROUTED
LIMIT_S = 20.0


@pytest.fixture
async def mesh(redis_url: str, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with compiler_mesh(redis_url, tmp_path) as running:
        await register_digits(running)
        yield running


async def compile_fp32(mesh: Mesh, **fields: Any) -> compiler_pb2.Build:
    events = await mesh.compile("digits", "ort-fp32", fingerprint_json=XEON.to_bytes(), **fields)
    return events[-1].build


async def manifest_of(mesh: Mesh, artifact_key: str) -> Manifest:
    reply = await mesh.artifacts.GetManifest(artifacts_pb2.GetManifestRequest(artifact_key=artifact_key))
    return Manifest.from_bytes(reply.manifest_json)


# --- one build


async def test_build_gets_the_model_its_samples_and_the_policy(mesh: Mesh) -> None:
    script = ScriptedBuild()

    async with worker(mesh, XEON, run=script) as record:
        build = await compile_fp32(mesh)
    manifest = await manifest_of(mesh, build.artifact_key)

    spec = script.specs[0]
    assert (spec.recipe.name, spec.policy.task, spec.policy.label_array) == ("ort-fp32", "classification", "label")
    assert (spec.calibration_file, spec.validation_file) == ("calibration.npz", "validation.npz")
    assert spec.hardware_class == record.hardware_class
    assert not script.directories[0].exists()
    assert build.phase == READY
    assert (manifest.model, manifest.version, manifest.verified) == ("digits", 1, "native")
    assert manifest.size_bytes == build.size_bytes > 0
    assert manifest.goldens_file().name == "goldens.npz"


async def test_artifact_that_nobody_can_prove_there_names_the_class_it_was_proven_on(mesh: Mesh) -> None:
    vnni = machine_of("xeon-cascade-lake-vnni")

    async with worker(mesh, XEON, run=ScriptedBuild()):
        events = await mesh.compile("digits", "ort-fp32", fingerprint_json=vnni.to_bytes())
    manifest = await manifest_of(mesh, events[-1].build.artifact_key)

    assert (manifest.verified, manifest.verified_isa) == ("native", "x86-64-v4")
    assert manifest.labels["gate_ran_on"] == "x86-64-v4 (native)"
    assert [reason.rule for reason in check(manifest, vnni)[1]] == ["verified"]
    assert "verified" not in [reason.rule for reason in check(manifest, XEON)[1]]


async def test_failure_is_typed_remembered_and_shows_the_gate(mesh: Mesh) -> None:
    gate = GateReport(False, "fp32", 4, failures=("cosine is 0.1, allowed is 0.999",))
    script = ScriptedBuild(
        failure=ChildFailure(FailureKind.DETERMINISTIC, "gate_missed", "the gate was missed", "x" * 9000, gate=gate)
    )

    async with worker(mesh, XEON, run=script):
        build = await compile_fp32(mesh)
        again = await compile_fp32(mesh)
        forced = await compile_fp32(mesh, force=True)

    assert (build.phase, build.failure.code) == (FAILED, "gate_missed")
    assert build.failure.kind == compiler_pb2.BUILD_FAILURE_KIND_DETERMINISTIC
    assert len(build.failure.log_tail) == 4096
    assert b"cosine is 0.1" in build.gate_json
    assert (again.cached, again.failure.code) == (True, "gate_missed")
    assert not forced.cached
    assert len(script.specs) == 2
    assert list((await mesh.artifacts.ListArtifacts(artifacts_pb2.ListArtifactsRequest())).artifacts) == []


async def test_layer_report_of_a_missed_gate_comes_with_its_build_and_not_with_lists(mesh: Mesh) -> None:
    report = LayerReport("ort-fp32", "onnxruntime", "fp32", layers=(Layer("conv1", 9.3),), tries=("k=1: SNR 9.3 dB",))
    script = ScriptedBuild(failure=ChildFailure(FailureKind.DETERMINISTIC, "gate_missed", "missed", layers=report))

    async with worker(mesh, XEON, run=script):
        build = await compile_fp32(mesh)
    alone = await mesh.compiler.GetBuild(compiler_pb2.GetBuildRequest(artifact_key=build.artifact_key))
    listed = await mesh.compiler.ListBuilds(compiler_pb2.ListBuildsRequest(model="digits"))

    assert LayerReport.from_bytes(alone.layers_json) == report
    assert [item.layers_json for item in listed.builds] == [b""]


async def test_lost_input_fails_the_build_and_not_the_worker(mesh: Mesh) -> None:
    record = await mesh.storage.index.model("digits")
    for chunk in record.files[0].chunks:
        await mesh.storage.chunks.delete(chunk.digest)  # type: ignore[attr-defined]

    async with worker(mesh, XEON, run=ScriptedBuild()):
        first = await compile_fp32(mesh)
        await register_digits(mesh, "again")  # brings the chunks back
        second = await compile_fp32(mesh, force=True)

    assert (first.phase, first.failure.code) == (FAILED, "input_missing")
    assert first.failure.kind == compiler_pb2.BUILD_FAILURE_KIND_INFRASTRUCTURE
    assert second.phase == READY


async def test_two_orders_are_one_build(mesh: Mesh) -> None:
    hold = asyncio.Event()
    script = ScriptedBuild(hold=hold)

    async with worker(mesh, XEON, run=script):
        orders = [asyncio.ensure_future(compile_fp32(mesh)) for _ in range(3)]
        await asyncio.wait_for(script.started.wait(), LIMIT_S)
        hold.set()
        builds = await asyncio.gather(*orders)

    assert {build.phase for build in builds} == {READY}
    assert len({build.artifact_key for build in builds}) == len(script.specs) == 1


async def test_cancelled_build_stops_its_child_and_publishes_nothing(mesh: Mesh) -> None:
    script = ScriptedBuild(hold=asyncio.Event())

    async with worker(mesh, XEON, run=script):
        watching = asyncio.ensure_future(compile_fp32(mesh))
        await asyncio.wait_for(script.started.wait(), LIMIT_S)
        key = (await mesh.compiler.ListBuilds(compiler_pb2.ListBuildsRequest())).builds[0].artifact_key
        await mesh.compiler.CancelBuild(compiler_pb2.CancelBuildRequest(artifact_key=key))
        build = await watching
        await asyncio.wait_for(script.cancelled.wait(), LIMIT_S)

    assert build.phase == CANCELLED
    assert not script.directories[0].exists()


async def test_worker_lives_on_after_poison_and_does_not_try_it_twice(mesh: Mesh) -> None:
    tried: list[str] = []

    async def run(directory: Path, spec: Any, limits: Any, on_progress: Any) -> Any:
        tried.append(spec.recipe.name)
        if spec.recipe.name != "ort-fp32":
            return await ScriptedBuild()(directory, spec, limits, on_progress)
        poison = ("-c", "import os; os.abort()")
        return await run_task(directory, spec, limits=limits, on_progress=on_progress, threads=1, program=poison)

    async with worker(mesh, XEON, run=run):
        first = await compile_fp32(mesh)
        second = await compile_fp32(mesh)
        other = (await mesh.compile("digits", "ort-int8-dynamic", fingerprint_json=XEON.to_bytes()))[-1].build

    assert (first.phase, first.failure.code) == (FAILED, "crash")
    assert "SIGABRT" in first.failure.message
    assert (second.phase, second.cached) == (FAILED, True)
    assert other.phase == READY
    assert tried == ["ort-fp32", "ort-int8-dynamic"]


async def test_long_build_keeps_its_lease(mesh: Mesh) -> None:
    hold = asyncio.Event()
    script = ScriptedBuild(hold=hold)

    async with worker(mesh, XEON, run=script, lease_s=0.4):
        watching = asyncio.ensure_future(compile_fp32(mesh))
        await asyncio.wait_for(script.started.wait(), LIMIT_S)
        with pytest.raises(TimeoutError):  # four leases go by
            await asyncio.wait_for(asyncio.shield(watching), 1.6)
        hold.set()
        build = await watching

    assert (build.phase, build.attempts) == (READY, 1)


async def test_stopping_worker_finishes_a_build_within_its_drain_time(mesh: Mesh) -> None:
    hold = asyncio.Event()
    script = ScriptedBuild(hold=hold)

    async with worker(mesh, XEON, run=script):
        watching = asyncio.ensure_future(compile_fp32(mesh))
        await asyncio.wait_for(script.started.wait(), LIMIT_S)
        asyncio.get_running_loop().call_later(0.2, hold.set)
    build = await asyncio.wait_for(watching, LIMIT_S)

    assert build.phase == READY


async def test_stopping_worker_gives_a_long_build_back_and_another_does_it(mesh: Mesh) -> None:
    script = ScriptedBuild(hold=asyncio.Event())

    async with worker(mesh, XEON, run=script, drain_s=0.05, lease_s=60):
        watching = asyncio.ensure_future(compile_fp32(mesh))
        await asyncio.wait_for(script.started.wait(), LIMIT_S)
    left = (await mesh.compiler.ListBuilds(compiler_pb2.ListBuildsRequest())).builds[0]
    async with worker(mesh, XEON, run=ScriptedBuild(), worker_id="worker-2"):
        build = await asyncio.wait_for(watching, LIMIT_S)

    assert script.cancelled.is_set()
    assert list(mesh.scratch.iterdir()) == []
    assert left.phase == UNROUTED  # it told that it left, and there was no other
    assert (build.phase, build.attempts) == (READY, 1)


async def test_worker_waits_for_a_lost_redis_and_goes_on(
    redis_factory: Callable[..., RedisServer], tmp_path: Path
) -> None:
    server = redis_factory()
    async with compiler_mesh(server.url, tmp_path) as mesh:
        await register_digits(mesh)
        async with worker(mesh, XEON, run=ScriptedBuild()):
            server.stop()
            server.start()
            async with asyncio.timeout(LIMIT_S):
                while not await mesh.storage.jobs.workers():
                    await asyncio.sleep(0.05)
            build = await compile_fp32(mesh)

    assert build.phase == READY


async def test_worker_outlives_a_redis_that_refuses_what_it_says(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Out of memory, a right that is missing, an error that nobody has seen before: others mend that."""
    refused = asyncio.Event()
    claim = RedisJobQueue.claim

    async def refuse_once(queue: RedisJobQueue, *given: Any, **named: Any) -> Lease | None:
        if not refused.is_set():
            refused.set()
            raise DovetailError("Redis refused a command: ERR of a new kind")
        return await claim(queue, *given, **named)

    monkeypatch.setattr(RedisJobQueue, "claim", refuse_once)
    async with worker(mesh, XEON, run=ScriptedBuild()):
        build = await compile_fp32(mesh)

    assert build.phase == READY
    assert "ERR of a new kind" in caplog.text
