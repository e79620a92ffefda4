# SPDX-License-Identifier: Apache-2.0
"""Every command against a mesh from memory: what it prints where, its JSON, and its exit code."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from dovetail.benchmark import BenchmarkRecord
from dovetail.cli.app import make_app
from dovetail.cli.exit_codes import ExitCode, exit_code_of
from dovetail.client import Objective
from dovetail.digest import canonical_json
from dovetail.errors import (
    DeadlineError,
    DovetailError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
)
from dovetail.fingerprint import ClassFacts, Fingerprint
from dovetail.gate import GateReport
from dovetail.pb.v1 import artifacts_pb2, compiler_pb2, fleet_pb2, registry_pb2, types_pb2
from dovetail.recipe import Recipe
from dovetail.wire import recipe_message
from tests.fakes.fake_mesh import FakeMesh, mesh_in_thread
from tests.fakes.tiny_artifacts import manifest_of

ORT = Recipe("ort-fp32", "onnxruntime", "cpu", "fp32")
STATIC = Recipe("ort-int8-static-u8s8", "onnxruntime", "cpu", "int8")
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


def build(recipe: Recipe, phase: int, key: str) -> compiler_pb2.Build:
    return compiler_pb2.Build(
        artifact_key=key * 64, model="digits", version=1, recipe=recipe_message(recipe), phase=phase, size_bytes=2048
    )


def ready_build() -> compiler_pb2.Build:
    ready = build(ORT, compiler_pb2.BUILD_PHASE_READY, "a")
    record = BenchmarkRecord("here", 1, 2, 100, 3, True, 0.5, 0.6, 0.75, 2000.0, 3.0, baseline_p50_ms=1.0)
    ready.benchmark_json = canonical_json(record.to_json())
    ready.gate_json = canonical_json(GateReport(True, "fp32", 8, metric_candidate=0.9922).to_json())
    return ready


def failed_build() -> compiler_pb2.Build:
    failed = build(STATIC, compiler_pb2.BUILD_PHASE_FAILED, "b")
    failed.failure.code = "gate_missed"
    failed.failure.message = "top-1 agreement is 91.00%, allowed is 99.00%"
    return failed


def test_push_prints_the_version_what_intake_changed_and_the_next_step(run: Run, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"model")

    result = run("push", "digits", str(tmp_path / "m.onnx"))

    assert (result.exit_code, result.stdout) == (0, "")
    for text in ("digits version 1", "opset 28 -> 21", "dovetail compile digits"):
        assert text in result.stderr


def test_push_of_a_bad_name_is_refused_with_the_rule(run: Run, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"model")

    result = run("push", "../evil", str(tmp_path / "m.onnx"))

    assert result.exit_code == ExitCode.FAILED
    assert "a-z 0-9 . _ -" in result.stderr


def test_models_lists_versions_as_a_table_and_as_json(run: Run, mesh: FakeMesh) -> None:
    mesh.models = [registry_pb2.Model(name="digits", version=3, aliases=["prod"], validation_samples=9, labelled=True)]
    mesh.models[0].inputs.add(name="image", datatype="FP32", shape=[-1, 1, 8, 8])

    table, document = run("models"), run("models", "--json")

    for text in ("digits", "3", "prod", "image FP32 ?x1x8x8", "9, labelled"):
        assert text in table.stdout
    (model,) = json.loads(document.stdout)
    assert (model["name"], model["version"], model["aliases"]) == ("digits", 3, ["prod"])
    assert model["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]


def test_without_models_json_is_an_empty_list_and_the_hint_goes_to_stderr(run: Run) -> None:
    table, document = run("models"), run("models", "--json")

    assert json.loads(document.stdout) == []
    assert (table.stdout, "dovetail push" in table.stderr) == ("", True)


def test_compile_shows_every_phase_and_ends_well_if_one_recipe_worked(run: Run, mesh: FakeMesh) -> None:
    builds = [build(ORT, compiler_pb2.BUILD_PHASE_GATING, "a"), ready_build(), failed_build()]
    mesh.events = [compiler_pb2.BuildEvent(event_id=str(n), build=item) for n, item in enumerate(builds)]

    result = run("compile", "digits", "--recipe", "ort-fp32", "--recipe", STATIC.name, "--force")

    assert result.exit_code == 0
    for text in ("ort-fp32: gating", "ort-fp32: ready", f"{STATIC.name}: failed (gate_missed)"):
        assert text in result.stderr
    for text in ("99.22%", "0.500", "0.750", "2.00x", "REJECTED", "gate_missed: top-1 agreement is 91.00%"):
        assert text in result.stdout
    order = mesh.compile_requests[0]
    assert (list(order.recipes), order.force) == (["ort-fp32", STATIC.name], True)


def test_compile_ends_with_1_if_no_recipe_worked(run: Run, mesh: FakeMesh) -> None:
    mesh.events = [compiler_pb2.BuildEvent(event_id="1", build=failed_build())]

    result = run("compile", "digits", "--json")

    assert result.exit_code == ExitCode.FAILED
    (document,) = json.loads(result.stdout)
    assert (document["phase"], document["failure"]["code"]) == ("failed", "gate_missed")


def interrupt(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Press Ctrl-C, and again as a person would if nothing happens: Python drops one that lands in a destructor."""
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=8)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        return process.communicate(timeout=20)


def test_ctrl_c_while_watching_ends_with_130_and_leaves_the_build_alone(mesh: FakeMesh) -> None:
    mesh.events = [compiler_pb2.BuildEvent(event_id="1", build=build(ORT, compiler_pb2.BUILD_PHASE_BUILDING, "a"))]
    mesh.hang = True
    command = [sys.executable, "-m", "dovetail.cli", "--server", mesh.address, "compile", "digits"]

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "ort-fp32: building\n"
        out, err = interrupt(process)

    assert (process.returncode, out) == (ExitCode.INTERRUPTED, ""), err
    assert err.splitlines() == [
        "the builds go on unwatched; `dovetail artifacts digits` shows what came of them",
        "stopped by Ctrl-C",
    ]


def test_ctrl_c_while_python_still_imports_ends_with_130_and_no_traceback() -> None:
    code = (
        "import signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'typer':\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from dovetail.cli.__main__ import main\n"
        "main()\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)

    assert (done.returncode, done.stderr) == (ExitCode.INTERRUPTED, "")


def test_artifacts_keeps_rejected_recipes_with_their_reason(run: Run, mesh: FakeMesh) -> None:
    manifest = manifest_of({"model.onnx": b"m", "goldens.npz": b"g"})
    mesh.models = [registry_pb2.Model(name="digits", version=1)]
    mesh.manifests[manifest.artifact_key] = manifest.to_bytes()
    mesh.events = [compiler_pb2.BuildEvent(event_id="1", build=failed_build())]

    table, document = run("artifacts", "digits"), run("artifacts", "digits", "--json")

    assert "ort-fp32" in table.stdout
    assert "gate_missed: top-1 agreement is 91.00%" in table.stdout
    assert [(item["recipe"], item["rejected"]) for item in json.loads(document.stdout)] == [
        ("ort-fp32", False),
        (STATIC.name, True),
    ]


def test_artifacts_of_an_unknown_model_end_with_4(run: Run) -> None:
    result = run("artifacts", "nothing")

    assert (result.exit_code, "no model 'nothing'" in result.stderr) == (ExitCode.NOT_FOUND, True)


def test_why_asks_for_the_machine_in_the_file_or_of_the_node(run: Run, mesh: FakeMesh, tmp_path: Path) -> None:
    board = Fingerprint(ClassFacts(arch="aarch64", board="raspberrypi,5-model-b"))
    (tmp_path / "pi.json").write_bytes(board.to_bytes())
    mesh.nodes = [fleet_pb2.Node(id="pi", fingerprint_json=board.to_bytes())]
    mesh.offer = artifacts_pb2.Offer(model="digits", version=1, hardware_label="a board", basis="prior")
    mesh.offer.assessments.add(
        artifact_key="a" * 64, recipe=recipe_message(ORT), verdict=types_pb2.VERDICT_OPTIMAL, rank=1, prior_speed=1.0
    )

    by_file = run("why", "digits", "--fingerprint", str(tmp_path / "pi.json"), "--objective", "memory")
    mesh.nodes[0].serving.add(model="digits", version=1, state="UNAVAILABLE", reason="[unsigned] artifact a of model")
    by_node = run("why", "digits", "--node", "pi", "--json")
    in_words = run("why", "digits", "--node", "pi")

    assert "digits version 1 on a board" in by_file.stdout
    assert json.loads(by_node.stdout)["offered"][0]["recipe"] == "ort-fp32"
    assert json.loads(by_node.stdout)["node"]["reason"] == "[unsigned] artifact a of model"
    assert "pi says: UNAVAILABLE: [unsigned] artifact a of model" in in_words.stdout
    assert [Fingerprint.from_bytes(item.fingerprint_json) for item in mesh.negotiations] == [board, board, board]
    assert mesh.negotiations[0].objective == types_pb2.OBJECTIVE_MEMORY


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("why", "digits", "--node", "nobody"), ExitCode.NOT_FOUND, "no node 'nobody'"),
        (("why", "digits", "--node", "a", "--fingerprint", "pyproject.toml"), ExitCode.USAGE, "not both"),
        (("why", "digits", "--fingerprint", "pyproject.toml"), ExitCode.FAILED, "pyproject.toml"),
        (("why",), ExitCode.USAGE, "Missing argument"),
        (("compile", "digits", "--fingerprint", "nothing.json"), ExitCode.USAGE, "nothing.json"),
        (("infer", "digits", "--input", "nothing.npy"), ExitCode.FAILED, "nothing.npy"),
        (("nonsense",), ExitCode.USAGE, "nonsense"),
    ],
)
def test_each_mistake_has_its_exit_code_and_no_traceback(
    run: Run, words: tuple[str, ...], code: ExitCode, text: str
) -> None:
    result = run(*words)

    assert result.exit_code == code
    assert text in result.stderr
    assert "Traceback" not in result.output


def test_infer_names_the_only_input_and_writes_the_output(run: Run, mesh: FakeMesh, tmp_path: Path) -> None:
    mesh.nodes = [fleet_pb2.Node(id="n", address=mesh.address)]
    mesh.nodes[0].serving.add(model="digits", version=1, state="READY")
    np.save(tmp_path / "x.npy", np.array([[1.0, 2.0]], np.float32))

    result = run("infer", "digits", "--input", str(tmp_path / "x.npy"), "--output", str(tmp_path / "y.npy"), "--json")

    assert json.loads(result.stdout)["outputs"] == [
        {"name": "image", "datatype": "FP32", "shape": [1, 2], "data": [2.0, 4.0]}
    ]
    assert np.load(tmp_path / "y.npy").tolist() == [[2.0, 4.0]]


def test_infer_can_ask_a_node_directly(run: Run, mesh: FakeMesh, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", image=np.array([3.0], np.float32))

    result = run("infer", "digits", "--input", str(tmp_path / "x.npz"), "--server", mesh.address, "--json")

    assert json.loads(result.stdout)["outputs"][0]["data"] == [6.0]


def test_infer_prints_what_json_does_not_have_as_texts(run: Run, mesh: FakeMesh, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([np.nan, np.inf, -np.inf], np.float32))

    result = run("infer", "digits", "--input", str(tmp_path / "x.npy"), "--server", mesh.address, "--json")

    assert json.loads(result.stdout)["outputs"][0]["data"] == ["NaN", "Infinity", "-Infinity"]


def test_nodes_shows_what_each_serves_and_why_not(run: Run, mesh: FakeMesh) -> None:
    mesh.nodes = [
        fleet_pb2.Node(id="edge-1", role="edge", address="10.0.0.7:8001", last_seen_ms=60_000),
        fleet_pb2.Node(id="worker-1", role="worker", engines=["onnxruntime"], last_seen_ms=0),
    ]
    mesh.nodes[0].serving.add(model="digits", version=1, state="UNAVAILABLE", reason="no artifact fits")

    table, document = run("nodes"), run("nodes", "--json")

    for text in ("edge-1", "10.0.0.7:8001", "UNAVAILABLE digits v1", "no artifact fits", "1 min before", "onnxruntime"):
        assert text in table.stdout
    assert json.loads(document.stdout)[0]["serving"][0]["reason"] == "no artifact fits"


def test_a_mesh_that_is_not_there_ends_with_3_and_says_how_to_get_one() -> None:
    result = CliRunner().invoke(make_app(), ["--server", "127.0.0.1:1", "models"])

    assert result.exit_code == ExitCode.NOT_REACHABLE
    assert "dovetail up" in result.stderr
    assert "Traceback" not in result.output


def test_debug_shows_the_traceback() -> None:
    result = CliRunner().invoke(make_app(), ["--debug", "--server", "127.0.0.1:1", "models"])

    assert result.exit_code == ExitCode.NOT_REACHABLE
    assert "Traceback" in result.stderr


def test_a_bug_is_told_in_one_line_with_how_to_see_more(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> object:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("dovetail.client.connect", broken)

    result = run("models")

    assert result.exit_code == ExitCode.FAILED
    assert "unexpected ZeroDivisionError: oops" in result.stderr
    assert "--debug" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnavailableError("x"), 3),
        (DeadlineError("x"), 3),
        (NotFoundError("x"), 4),
        (InvalidInputError("x"), 1),
        (DovetailError("x"), 1),
    ],
)
def test_errors_map_to_documented_exit_codes(error: DovetailError, code: int) -> None:
    assert exit_code_of(error) == code


def test_help_names_every_command_and_the_exit_codes_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['dovetail', '--help']\n"
        "from dovetail.cli.__main__ import main\n"
        "try:\n    main()\n"
        "finally:\n"
        "    heavy = {'grpc', 'numpy', 'onnx', 'onnxruntime', 'openvino', 'google.protobuf', 'redis'}\n"
        "    print('heavy:', sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    for word in (
        "up", "doctor", "version", "push", "models", "compile", "artifacts", "infer", "why", "fingerprint", "nodes",
        "130 ended",
    ):  # fmt: skip
        assert word in done.stdout
    assert "heavy: []" in done.stderr


def test_the_objectives_of_why_are_those_of_the_sdk() -> None:
    from dovetail.cli.why import _Goal

    assert [goal.value for goal in _Goal] == [objective.value for objective in Objective]


def test_version_needs_no_server() -> None:
    result = CliRunner().invoke(make_app(), ["version", "--json"])

    assert json.loads(result.stdout)["version"]
