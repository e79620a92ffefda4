# SPDX-License-Identifier: Apache-2.0
"""`compile --for/--objective/--budget`, `rebuild`, `stale` and `report` against a mesh from memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from dovetail.cli import builds as builds_command
from dovetail.cli.app import make_app
from dovetail.cli.durations import parse_duration
from dovetail.cli.exit_codes import ExitCode
from dovetail.client import Objective
from dovetail.digest import canonical_json
from dovetail.fingerprint import Fingerprint
from dovetail.pb.v1 import compiler_pb2, registry_pb2, types_pb2
from dovetail.recipe import Recipe
from dovetail.wire import recipe_message
from tests.fakes.fake_mesh import FakeMesh, mesh_in_thread
from tests.fakes.records import figures
from tests.fakes.tiny_artifacts import manifest_of

ORT = Recipe("ort-fp32", "onnxruntime", "cpu", "fp32")
READY = compiler_pb2.BUILD_PHASE_READY
Run = Callable[..., Result]


@pytest.fixture
def mesh() -> Iterator[FakeMesh]:
    with mesh_in_thread() as running:
        yield running


@pytest.fixture
def run(mesh: FakeMesh) -> Run:
    def call(*words: str) -> Result:
        runner = CliRunner(env={"DOVETAIL_SERVER": mesh.address, "COLUMNS": "160", "NO_COLOR": "1"})
        return runner.invoke(make_app(), list(words), prog_name="dovetail")

    return call


def event(phase: int, key: str = "a", **fields: object) -> compiler_pb2.BuildEvent:
    build = compiler_pb2.Build(
        artifact_key=key * 64, model="digits", version=1, recipe=recipe_message(ORT), phase=phase, **fields
    )
    return compiler_pb2.BuildEvent(event_id="1", build=build)


# --- durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("5m", 300), ("1h", 3600), ("1h30m", 5400), ("1.5m", 90), ("45", 45), (" 2 M ", 120), ("24h", 86400)],
)
def test_durations_read_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5x", "m", "-5m", "1m1h", "0s", "25h", "1e3", "nan"])
def test_what_is_no_duration_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"duration|over zero"):
        parse_duration(text)


# --- compile


def test_objectives_of_the_option_are_those_of_the_sdk() -> None:
    assert [(item.name, item.value) for item in builds_command.Objective] == [
        (item.name, item.value) for item in Objective
    ]


def test_compile_sends_class_objective_and_budget(run: Run, mesh: FakeMesh) -> None:
    mesh.events = [event(READY)]

    result = run("compile", "digits", "--for", "fleet", "--objective", "throughput", "--budget", "5m")

    (request,) = mesh.compile_requests
    assert result.exit_code == 0, result.stderr
    assert (request.hardware_class, request.fingerprint_json) == ("fleet", b"")
    assert (request.objective, request.budget_s) == (types_pb2.OBJECTIVE_THROUGHPUT, 300.0)


def test_compile_for_this_machine_sends_its_fingerprint(run: Run, mesh: FakeMesh) -> None:
    mesh.events = [event(READY)]

    result = run("compile", "digits", "--for", "this")

    (request,) = mesh.compile_requests
    assert result.exit_code == 0, result.stderr
    assert request.hardware_class == ""
    assert Fingerprint.from_bytes(request.fingerprint_json).facts.arch
    assert request.budget_s == 0


def test_compile_with_a_bad_budget_is_wrong_usage(run: Run, mesh: FakeMesh) -> None:
    result = run("compile", "digits", "--budget", "soon")

    assert result.exit_code == ExitCode.USAGE
    assert "90s, 5m, 1h" in result.stderr
    assert mesh.compile_requests == []


def test_compile_shows_what_was_not_tried_and_what_was_only_told(run: Run, mesh: FakeMesh) -> None:
    told = event(compiler_pb2.BUILD_PHASE_UNROUTED, message="openvino does not support com.example::Foo")
    told.build.artifact_key = ""
    other = event(compiler_pb2.BUILD_PHASE_UNROUTED, message="tensorrt does not support com.example::Bar")
    other.build.artifact_key, other.build.hardware_class = "", "elsewhere"
    skipped = event(compiler_pb2.BUILD_PHASE_CANCELLED, "b", message="not tried: budget over")
    mesh.events = [told, other, event(READY), skipped]

    result = run("compile", "digits", "--budget", "1m")

    assert result.exit_code == 0
    for text in ("com.example::Foo", "com.example::Bar", "not tried: budget over"):
        assert text in result.stdout


# --- rebuild


def test_rebuild_takes_the_front_of_a_key_and_says_whether_the_bytes_are_the_same(run: Run, mesh: FakeMesh) -> None:
    manifest = manifest_of({"model.onnx": b"model"}, recipe=ORT)
    mesh.manifests = {manifest.artifact_key: manifest.to_bytes()}
    mesh.events = [event(READY, message="rebuilt: the same bytes (model.onnx)")]

    result = run("rebuild", manifest.artifact_key[:12])

    assert result.exit_code == 0, result.stderr
    assert mesh.rebuilds == [manifest.artifact_key]
    assert "rebuilt: the same bytes (model.onnx)" in result.stderr


@pytest.mark.parametrize(("named", "code"), [("abc", ExitCode.FAILED), ("0123456789", ExitCode.NOT_FOUND)])
def test_rebuild_of_an_unclear_key_is_refused(run: Run, mesh: FakeMesh, named: str, code: ExitCode) -> None:
    result = run("rebuild", named)

    assert (result.exit_code, mesh.rebuilds) == (code, [])


# --- stale


def stale_artifact(key: str, recipe: str, successor: str = "") -> compiler_pb2.StaleArtifact:
    return compiler_pb2.StaleArtifact(
        artifact_key=key * 64, model="digits", version=1, recipe=recipe, hardware_class="here", successor=successor,
        tools=[compiler_pb2.StaleTool(name="onnx", built_with="1.20.0", available="1.23.2")],
    )  # fmt: skip


def test_stale_lists_tools_and_requeues_what_has_no_successor(run: Run, mesh: FakeMesh) -> None:
    mesh.stale = [stale_artifact("a", "ort-fp32"), stale_artifact("b", "ort-int8-dynamic", successor="c" * 64)]
    mesh.events = [event(READY, "d")]

    listed, requeued = run("stale"), run("stale", "--requeue", "--json")

    assert all(text in listed.stdout for text in ("ort-fp32", "1.20.0", "1.23.2", "c" * 12))
    (request,) = mesh.compile_requests
    assert (list(request.recipes), request.hardware_class, request.version) == (["ort-fp32"], "here", 1)
    document = json.loads(requeued.stdout)
    assert [item["successor"] for item in document["stale"]] == ["", "c" * 64]
    assert [item["artifact_key"] for item in document["builds"]] == ["d" * 64]


def test_stale_without_anything_stale_says_so(run: Run) -> None:
    result = run("stale")

    assert (result.exit_code, result.stdout) == (0, "")
    assert "no artifact has tools older" in result.stderr


# --- report


def test_report_writes_three_files_with_what_nodes_measured(run: Run, mesh: FakeMesh, tmp_path: Path) -> None:
    manifest = manifest_of({"model.onnx": b"model"}, recipe=ORT)
    mesh.models = [registry_pb2.Model(name="digits", version=1, model_digest="d" * 64)]
    mesh.manifests = {manifest.artifact_key: manifest.to_bytes()}
    record = replace(figures("class-a", p50_ms=0.25, reported_by="node-7"), cpu_ms=3.6)
    mesh.figures = {manifest.artifact_key: [canonical_json(record.to_json())]}

    result = run("report", "digits", "--out", str(tmp_path / "out"), "--price-per-core-hour", "0.5")

    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "digits-v1.html", "digits-v1.json", "digits-v1.md",
    ]  # fmt: skip
    document = json.loads((tmp_path / "out" / "digits-v1.json").read_text())
    (run_,) = document["classes"][0]["entries"][0]["runs"]
    assert run_["record"]["reported_by"] == "node-7"
    assert run_["cost"] == {"core_hours": pytest.approx(1.0), "price": pytest.approx(0.5), "basis": "CPU time"}
    assert "node-7" in (tmp_path / "out" / "digits-v1.html").read_text()
    assert "ort-fp32" in result.stdout


def test_report_of_a_class_without_figures_names_those_that_have_some(run: Run, mesh: FakeMesh) -> None:
    mesh.models = [registry_pb2.Model(name="digits", version=1)]

    result = run("report", "digits", "--class", "mars")

    assert result.exit_code == ExitCode.NOT_FOUND
    assert "there are figures of: none" in result.stderr


# --- builds


def test_builds_lists_what_waits_for_a_worker_with_its_reason(run: Run, mesh: FakeMesh) -> None:
    waits = event(compiler_pb2.BUILD_PHASE_UNROUTED, key="", message="it needs a worker with engine tensorrt")
    mesh.events = [waits, event(READY)]

    table, document = run("builds", "digits"), run("builds", "--json")

    assert table.exit_code == 0, table.output
    assert "unrouted: it needs a worker with engine tensorrt" in table.output
    assert "aaaaaaaaaaaa" in table.output
    assert [item["phase"] for item in json.loads(document.stdout)] == ["unrouted", "ready"]


def test_builds_says_when_nothing_was_ordered(run: Run, mesh: FakeMesh) -> None:
    mesh.events = []

    assert "nothing was ordered yet" in run("builds").output
