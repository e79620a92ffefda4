# SPDX-License-Identifier: Apache-2.0
"""The compiler service over real gRPC and a real Redis: the whole way, pushing models, losing Redis."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from dovetail.pb.v1 import artifacts_pb2, compiler_pb2, fleet_pb2, registry_pb2
from dovetail.probe import measure
from dovetail.wire import benchmark_bytes
from tests.fakes.compiler_mesh import (
    DIGITS,
    Mesh,
    Request,
    compiler_mesh,
    machine_of,
    push_file,
    push_requests,
    register_digits,
    worker,
)
from tests.fakes.records import figures
from tests.fakes.scripted_build import ScriptedBuild
from tests.fixtures_compiler import XEON, fetch, mesh, negotiation, refused
from tests.fixtures_redis import RedisServer

__all__ = ["mesh"]

MODEL = (DIGITS / "digits.onnx").read_bytes()
Status = grpc.StatusCode


# --- the whole way


async def test_pushed_model_is_compiled_offered_and_fetched(mesh: Mesh) -> None:
    machine = await measure()

    pushed = await mesh.push_digits()
    async with worker(mesh, machine):
        events = await mesh.compile("digits", "ort-fp32")
        again = await mesh.compile("digits", "ort-fp32")
    offer = await mesh.artifacts.Negotiate(negotiation(fingerprint_json=machine.to_bytes()))
    files = await fetch(mesh, offer.choice)

    assert (pushed.created, pushed.model.version, pushed.model.labelled) == (True, 1, True)
    phases = [event.build.phase for event in events]
    assert phases[-1] == compiler_pb2.BUILD_PHASE_READY
    assert {compiler_pb2.BUILD_PHASE_BUILDING, compiler_pb2.BUILD_PHASE_GATING} <= set(phases)
    assert [event.build.cached for event in again] == [True]
    assert offer.choice == events[-1].build.artifact_key
    assert [(item.recipe.name, item.rank, item.measured) for item in offer.assessments] == [("ort-fp32", 1, True)]
    assert {"ort-int8-dynamic", "openvino-fp32"} <= {item.recipe.name for item in offer.better}
    assert {"model.onnx", "goldens.npz"} <= set(files)
    assert json.loads(events[-1].build.gate_json)["passed"] is True
    assert list(mesh.scratch.iterdir()) == []


# --- models


async def test_same_content_is_the_same_version_and_aliases_point_at_it(mesh: Mesh) -> None:
    first = await mesh.push_digits()
    second = await mesh.push_digits()
    await mesh.models.SetAlias(registry_pb2.SetAliasRequest(name="digits", alias="prod", version=1))

    found = await mesh.models.GetModel(registry_pb2.GetModelRequest(name="digits", alias="prod"))
    listed = await mesh.models.ListModels(registry_pb2.ListModelsRequest())

    assert (first.created, second.created) == (True, False)
    assert second.model.version == 1
    assert (found.version, list(found.aliases)) == (1, ["prod"])
    assert [(model.name, model.version) for model in listed.models] == [("digits", 1)]


async def test_deleted_model_is_gone(mesh: Mesh) -> None:
    await register_digits(mesh)

    reply = await mesh.models.DeleteModel(registry_pb2.DeleteModelRequest(name="digits"))

    assert reply.versions_deleted == 1
    code, text = await refused(mesh.models.GetModel(registry_pb2.GetModelRequest(name="digits")))
    assert code is Status.NOT_FOUND
    assert "digits" in text


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda m: m.models.GetModel(registry_pb2.GetModelRequest(name="nothing")), Status.NOT_FOUND),
        (lambda m: m.models.GetModel(registry_pb2.GetModelRequest(name="../x")), Status.INVALID_ARGUMENT),
        (lambda m: m.models.GetModel(registry_pb2.GetModelRequest(name="digits", version=-1)), Status.INVALID_ARGUMENT),
        (lambda m: m.models.GetModel(registry_pb2.GetModelRequest(name="digits", version=9)), Status.NOT_FOUND),
        (lambda m: m.models.SetAlias(registry_pb2.SetAliasRequest(name="digits", alias="p")), Status.INVALID_ARGUMENT),
        (
            lambda m: m.models.SetAlias(registry_pb2.SetAliasRequest(name="digits", alias="P!", version=1)),
            Status.INVALID_ARGUMENT,
        ),
        (lambda m: m.models.DeleteModel(registry_pb2.DeleteModelRequest(name="nothing")), Status.NOT_FOUND),
        (lambda m: m.compiler.GetBuild(compiler_pb2.GetBuildRequest(artifact_key="0" * 64)), Status.NOT_FOUND),
        (lambda m: m.compiler.GetBuild(compiler_pb2.GetBuildRequest(artifact_key="x")), Status.INVALID_ARGUMENT),
        (lambda m: m.compiler.CancelBuild(compiler_pb2.CancelBuildRequest(artifact_key="0" * 64)), Status.NOT_FOUND),
        (lambda m: m.artifacts.GetManifest(artifacts_pb2.GetManifestRequest(artifact_key="0" * 64)), Status.NOT_FOUND),
        (lambda m: m.artifacts.Negotiate(negotiation(model="nothing")), Status.NOT_FOUND),
        (lambda m: m.artifacts.Negotiate(negotiation(fingerprint_json=b"{")), Status.INVALID_ARGUMENT),
        (lambda m: m.artifacts.Negotiate(negotiation(accuracy_floor=95.0)), Status.INVALID_ARGUMENT),
        (lambda m: m.artifacts.Negotiate(negotiation(pin="best")), Status.INVALID_ARGUMENT),
        (lambda m: m.artifacts.Negotiate(negotiation(objective=77)), Status.INVALID_ARGUMENT),
        (
            lambda m: m.artifacts.ReportBenchmark(
                artifacts_pb2.ReportBenchmarkRequest(
                    artifact_key="0" * 64, benchmark_json=benchmark_bytes(figures("c"))
                )
            ),
            Status.NOT_FOUND,
        ),
        (
            lambda m: m.artifacts.ReportBenchmark(
                artifacts_pb2.ReportBenchmarkRequest(artifact_key="0" * 64, benchmark_json=b"{}")
            ),
            Status.INVALID_ARGUMENT,
        ),
        (lambda m: m.fleet.ReportNode(fleet_pb2.Node(id="A B", role="edge")), Status.INVALID_ARGUMENT),
        (lambda m: m.fleet.ReportNode(fleet_pb2.Node(id="n", role="toaster")), Status.INVALID_ARGUMENT),
        (lambda m: m.fleet.ReportNode(fleet_pb2.Node(id="n", role="edge", address="x")), Status.INVALID_ARGUMENT),
        (
            lambda m: m.fleet.ReportNode(fleet_pb2.Node(id="n", role="edge", fingerprint_json=b"")),
            Status.INVALID_ARGUMENT,
        ),
    ],
)
async def test_wrong_questions_get_their_status(mesh: Mesh, call: Callable[[Mesh], Any], code: Status) -> None:
    await register_digits(mesh)

    found, text = await refused(call(mesh))

    assert found is code, text
    assert len(text) > 20
    assert "Traceback" not in text


# --- bad pushes


def truthful(*files: tuple[str, bytes]) -> list[registry_pb2.PushFile]:
    return [push_file(role, data) for role, data in files]


def lying(**changes: Any) -> list[registry_pb2.PushFile]:
    announced = push_file("model", MODEL)
    for name, value in changes.items():
        setattr(announced, name, value)
    return [announced]


@pytest.mark.parametrize(
    ("name", "files", "announced", "code", "text"),
    [
        ("digits", [("model", b"this is no model")], (), Status.INVALID_ARGUMENT, "ONNX"),
        ("digits", [("model", MODEL[:-1000])], (), Status.INVALID_ARGUMENT, "ONNX"),
        ("digits", [("model", MODEL), ("calibration", b"no zip")], (), Status.INVALID_ARGUMENT, "calibration"),
        ("Digits!", [("model", MODEL)], (), Status.INVALID_ARGUMENT, "model name 'Digits!' is not allowed"),
        ("digits", [("model", MODEL)], lying(sha256="0" * 64), Status.INVALID_ARGUMENT, "arrived with digest"),
        ("digits", [("model", MODEL)], lying(sha256="abc"), Status.INVALID_ARGUMENT, "64 lower-case hex"),
        ("digits", [("model", MODEL)], lying(size_bytes=len(MODEL) + 1), Status.INVALID_ARGUMENT, "ended after"),
        ("digits", [("model", MODEL)], lying(size_bytes=len(MODEL) - 1), Status.INVALID_ARGUMENT, "longer than"),
        ("digits", [("model", MODEL)], lying(size_bytes=0), Status.INVALID_ARGUMENT, "is empty"),
        ("digits", [("model", MODEL)], lying(role=9), Status.INVALID_ARGUMENT, "role"),
        ("digits", [("model", MODEL)], lying(size_bytes=9 << 20), Status.RESOURCE_EXHAUSTED, "at most 8388608"),
        ("digits", [], truthful(("model", MODEL)) * 2, Status.INVALID_ARGUMENT, "exactly one model file"),
        ("digits", [], truthful(("calibration", b"x")), Status.INVALID_ARGUMENT, "exactly one model file"),
        (
            "digits",
            [],
            [*truthful(("model", MODEL)), push_file("external", b"x", "../../etc/passwd")],
            Status.INVALID_ARGUMENT,
            "leaves the model's folder",
        ),
        ("digits", [("model", MODEL), ("model", b"more")], lying(), Status.INVALID_ARGUMENT, "after the last"),
    ],
)
async def test_bad_push_is_refused_with_its_reason_and_leaves_nothing(
    mesh: Mesh, name: str, files: list[tuple[str, bytes]], announced: Any, code: Status, text: str
) -> None:
    found, said = await refused(mesh.models.PushModel(push_requests(name, files, announced=announced)))

    assert found is code, said
    assert text in said
    assert str(mesh.scratch) not in said
    assert list((await mesh.models.ListModels(registry_pb2.ListModelsRequest())).models) == []
    assert list(mesh.scratch.glob("*")) == []


async def test_push_that_breaks_the_protocol_is_refused(mesh: Mesh) -> None:
    header = registry_pb2.PushHeader(name="digits", files=truthful(("model", MODEL)))

    async def no_header() -> AsyncIterator[Request]:
        yield Request(data=b"x")

    async def nothing() -> AsyncIterator[Request]:
        return
        yield

    async def two_headers() -> AsyncIterator[Request]:
        yield Request(header=header)
        yield Request(header=header)

    async def huge_message() -> AsyncIterator[Request]:
        yield Request(header=header)
        yield Request(data=bytes(2 << 20))

    for stream, text in (
        (no_header(), "begin with its header"),
        (nothing(), "begin with its header"),
        (two_headers(), "one header"),
        (huge_message(), "at most 1048576"),
    ):
        code, said = await refused(mesh.models.PushModel(stream))
        assert (code, text in said) == (Status.INVALID_ARGUMENT, True), said


async def test_policy_out_of_range_is_refused(mesh: Mesh) -> None:
    code, text = await refused(mesh.push("digits", ("model", MODEL), max_metric_drop=5.0))

    assert code is Status.INVALID_ARGUMENT
    assert "fraction" in text


async def test_client_that_disappears_in_a_push_leaves_nothing(redis_url: str, tmp_path: Path) -> None:
    sent = asyncio.Event()

    async def half() -> AsyncIterator[Request]:
        yield Request(header=registry_pb2.PushHeader(name="digits", files=truthful(("model", MODEL))))
        yield Request(data=MODEL[:1000])
        sent.set()
        await asyncio.Event().wait()

    async with compiler_mesh(redis_url, tmp_path) as mesh:
        call = mesh.models.PushModel(half())
        await asyncio.wait_for(sent.wait(), 10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert list((await mesh.models.ListModels(registry_pb2.ListModelsRequest())).models) == []

    assert list((tmp_path / "scratch").glob("*")) == []


# --- nodes


async def test_nodes_and_workers_are_listed_with_their_classes(mesh: Mesh) -> None:
    pi = machine_of("raspberry-pi-5")
    node = fleet_pb2.Node(id="pi-1", role="edge", address="10.0.0.7:8001", fingerprint_json=pi.to_bytes())

    reply = await mesh.fleet.ReportNode(node)
    async with worker(mesh, XEON, run=ScriptedBuild()):
        nodes = (await mesh.fleet.ListNodes(fleet_pb2.ListNodesRequest())).nodes

    assert reply.next_report_s == 10.0
    assert [(item.id, item.role) for item in nodes] == [("pi-1", "edge"), ("worker-1", "worker")]
    assert all(item.hardware_class and item.last_seen_ms for item in nodes)
    assert "onnxruntime" in nodes[1].engines


# --- losing Redis


async def test_lost_redis_is_told_and_service_recovers_by_itself(
    redis_factory: Callable[..., RedisServer], tmp_path: Path
) -> None:
    server = redis_factory()
    async with compiler_mesh(server.url, tmp_path) as mesh:
        await register_digits(mesh)
        async with worker(mesh, XEON, run=ScriptedBuild()):
            await mesh.compile("digits", "ort-fp32", fingerprint_json=XEON.to_bytes())
            server.stop()
            listing = await refused(mesh.models.ListModels(registry_pb2.ListModelsRequest()))
            push = await refused(mesh.push_digits("other"))
            server.start()
            models = (await mesh.models.ListModels(registry_pb2.ListModelsRequest())).models
            async with asyncio.timeout(20):
                while not await mesh.storage.jobs.workers():  # the worker beats every second
                    await asyncio.sleep(0.05)
            events = await mesh.compile("digits", "ort-int8-dynamic", fingerprint_json=XEON.to_bytes())
        offer = await mesh.artifacts.Negotiate(negotiation())

    assert listing[0] is Status.UNAVAILABLE
    assert "Redis" in listing[1]
    assert push[0] is Status.UNAVAILABLE
    assert [(model.name, model.version) for model in models] == [("digits", 1)]
    assert events[-1].build.phase == compiler_pb2.BUILD_PHASE_READY
    assert {item.recipe.name for item in offer.assessments} == {"ort-fp32", "ort-int8-dynamic"}
