# SPDX-License-Identifier: Apache-2.0
"""`dovetail debug` against a mesh from memory: which report it shows, how, as JSON and as a picture."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from dovetail.artifact import Manifest
from dovetail.cli.app import make_app
from dovetail.cli.exit_codes import ExitCode
from dovetail.layers import Layer, LayerReport, TensorError
from dovetail.pb.v1 import compiler_pb2, registry_pb2
from dovetail.recipe import Recipe
from dovetail.wire import recipe_message
from tests.fakes.fake_mesh import FakeMesh, mesh_in_thread
from tests.fakes.tiny_artifacts import file_entry, manifest_of

STATIC = Recipe("ort-int8-static", "onnxruntime", "cpu", "int8")
FAILED_KEY = "b" * 64
Run = Callable[..., Result]


def report_of(recipe: str = STATIC.name, *, tries: tuple[str, ...] = ()) -> LayerReport:
    rows = (
        TensorError("r1", "conv1", "Conv", 38.2, 0.9999, 0.01, True, 0.25),
        TensorError("r2", "conv2", "Conv", 9.3, 0.91, 0.31, True, 0.5, ("r1",)),
        TensorError("y", "soft", "Softmax", 9.1, 0.9, 0.3, False, 0.0, ("r2",), "Softmax stays in float"),
    )
    layers = (Layer("conv2", 8.7, "rank 1 of 2: the gate needs it"), Layer("conv1", 41.0))
    return LayerReport(recipe, "onnxruntime", "int8", 4, rows, layers, "alone", tries)


@pytest.fixture
def mesh() -> Iterator[FakeMesh]:
    with mesh_in_thread() as running:
        running.models = [registry_pb2.Model(name="digits", version=1)]
        yield running


@pytest.fixture
def run(mesh: FakeMesh) -> Run:
    def call(*words: str) -> Result:
        runner = CliRunner(env={"DOVETAIL_SERVER": mesh.address, "COLUMNS": "160", "NO_COLOR": "1"})
        return runner.invoke(make_app(), ["debug", *words], prog_name="dovetail")

    return call


def publish(
    mesh: FakeMesh, report: LayerReport | None, *, recipe: Recipe = STATIC, content: bytes = b"model"
) -> Manifest:
    """An artifact, with a layer report if there is one."""
    manifest = manifest_of({"model.onnx": content}, recipe=recipe)
    if report is not None:
        data = report.to_bytes()
        entry = file_entry("layers.json", data, role="layers", chunk_bytes=64)
        manifest = replace(manifest, files=(*manifest.files, entry))
        mesh.chunks |= {chunk.digest: data[64 * n : 64 * n + 64] for n, chunk in enumerate(entry.chunks)}
    mesh.manifests[manifest.artifact_key] = manifest.to_bytes()
    return manifest


def fail_build(mesh: FakeMesh, report: LayerReport | None) -> None:
    build = compiler_pb2.Build(
        artifact_key=FAILED_KEY, model="digits", version=1, recipe=recipe_message(STATIC),
        phase=compiler_pb2.BUILD_PHASE_FAILED, layers_json=report.to_bytes() if report else b"",
    )  # fmt: skip
    build.failure.code = "gate_missed"
    mesh.events = [compiler_pb2.BuildEvent(event_id="1", build=build)]


def test_debug_names_the_jump_and_shows_every_tensor_with_the_layers_that_stayed_in_float(
    run: Run, mesh: FakeMesh
) -> None:
    publish(mesh, report_of())

    result = run("digits", STATIC.name)

    assert result.exit_code == 0, result.output
    assert "the error jumps at r2 (node conv2): 9.3 dB after 34.9 dB" in result.stdout
    for text in ("conv1", "38.2", "0.9100", "31.00%", "float: Softmax stays in float", "in float: rank 1 of 2"):
        assert text in result.stdout


def test_artifact_is_found_by_the_front_of_its_key(run: Run, mesh: FakeMesh) -> None:
    manifest = publish(mesh, report_of())

    assert run("digits", manifest.artifact_key[:12]).exit_code == 0
    assert run("digits", manifest.artifact_key[:3]).exit_code != 0


def test_build_that_missed_the_gate_tells_what_was_tried(run: Run, mesh: FakeMesh) -> None:
    fail_build(mesh, report_of(tries=("k=1: SNR 14.2 dB", "k=2: gain 1.05x < 1.1x")))

    result = run("digits", STATIC.name)

    assert result.exit_code == 0, result.output
    assert "tried: k=1: SNR 14.2 dB" in result.stdout
    assert "jumps at r2" in result.stdout


def test_published_artifact_is_meant_before_a_failed_build_of_the_same_recipe(run: Run, mesh: FakeMesh) -> None:
    fail_build(mesh, report_of(tries=("k=1: SNR 14.2 dB",)))
    publish(mesh, report_of())

    assert "tried" not in run("digits", STATIC.name).stdout
    assert "tried" in run("digits", FAILED_KEY[:8]).stdout


def test_json_holds_the_report_and_the_jump(run: Run, mesh: FakeMesh) -> None:
    publish(mesh, report_of())

    document = json.loads(run("digits", STATIC.name, "--json").stdout)

    assert (document["model"], document["version"], document["first_jump"]["tensor"]) == ("digits", 1, "r2")
    assert [row["tensor"] for row in document["tensors"]] == ["r1", "r2", "y"]
    assert document["layers"][0]["kept"].startswith("rank 1")


def test_plot_is_a_png(run: Run, mesh: FakeMesh, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs the extra report")
    publish(mesh, report_of())
    picture = tmp_path / "layers.png"

    result = run("digits", STATIC.name, "--plot", str(picture))

    assert result.exit_code == 0, result.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"wrote {picture}" in result.stderr.replace("\n", "")


def test_without_matplotlib_the_plot_is_refused_with_what_to_install(
    run: Run, mesh: FakeMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(mesh, report_of())
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    result = run("digits", STATIC.name, "--plot", str(tmp_path / "layers.png"))

    assert result.exit_code == ExitCode.FAILED
    assert "pip install 'dovetail[report]'" in result.stderr


def test_float_artifact_says_why_it_has_no_layers(run: Run, mesh: FakeMesh) -> None:
    publish(mesh, None, recipe=Recipe("ort-fp32", "onnxruntime", "cpu", "fp32"))

    result = run("digits", "ort-fp32")

    assert result.exit_code != 0
    assert "ships no layer report: only int8 and int4 ones do" in result.stderr


def test_failed_build_without_a_report_and_unknown_names_are_said_plainly(run: Run, mesh: FakeMesh) -> None:
    fail_build(mesh, None)

    bare, unknown = run("digits", STATIC.name), run("digits", "ort-int8-other")

    assert "has no layer report" in bare.stderr
    assert f"no artifact or failed build 'ort-int8-other'; there are {STATIC.name}" in unknown.stderr


def test_two_artifacts_of_one_recipe_must_be_told_apart_by_key(run: Run, mesh: FakeMesh) -> None:
    keys = [publish(mesh, report_of(), content=content).artifact_key for content in (b"one", b"two")]

    result = run("digits", STATIC.name)

    assert result.exit_code != 0
    assert "stands for 2 artifacts" in result.stderr
    assert all(key[:12] in result.stderr.replace("\n", "") for key in keys)
