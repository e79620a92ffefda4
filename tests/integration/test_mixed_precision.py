# SPDX-License-Identifier: Apache-2.0
"""Blanket int8 that misses the gate, mended by keeping a few layers in float: real builds of the outlier example."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler_svc.backends import all_backends
from compiler_svc.backends.base import BuildInput
from compiler_svc.worker import judging
from compiler_svc.worker.build_spec import BuildResult, BuildSpec, ChildLimits, Progress
from compiler_svc.worker.candidate import Candidate, judged
from compiler_svc.worker.child_failure import ChildFailure
from compiler_svc.worker.mixed_build import Repaired, Workshop, repair
from compiler_svc.worker.sandbox import run_build
from compiler_svc.worker.trial import NativeGround
from dovetail.contract import Contract
from dovetail.engines import SessionOptions, create_engine
from dovetail.engines.goldens import replay
from dovetail.layers import LIMIT_DB, LayerReport
from dovetail.recipe import Recipe
from dovetail.rules import ModelFacts
from dovetail.tensor import TensorSpec
from tests.fakes.onnx_models import save

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "outlier" / "make_outlier.py"
WIDTH, DEPTH = 64, 4
STATIC = Recipe(
    "ort-int8-static",
    "onnxruntime",
    "cpu",
    "int8",
    {"quantization": "static", "reduce_range": True, "int8_flavour": "static-u8s8-rr"},
    needs_calibration=True,
)
DYNAMIC = Recipe("ort-int8-dynamic", "onnxruntime", "cpu", "int8", {"quantization": "dynamic"})
OPENVINO = Recipe("openvino-int8", "openvino", "cpu", "int8", {"quantization": "static"}, needs_calibration=True)


def example() -> Any:
    """The module of the example, which is no package."""
    spec = importlib.util.spec_from_file_location("make_outlier", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A child's directory with the outlier net and its samples."""
    outlier = example()
    save(outlier.make_outlier(WIDTH, DEPTH), tmp_path / "model.onnx")
    np.savez(tmp_path / "calibration.npz", x=outlier.samples(32, WIDTH, seed=1))
    np.savez(tmp_path / "validation.npz", x=outlier.samples(32, WIDTH, seed=2))
    (tmp_path / "out").mkdir()
    return tmp_path


def spec_of(recipe: Recipe, **changes: Any) -> BuildSpec:
    spec = BuildSpec(
        recipe,
        Contract(recipe.engine, recipe.device, recipe.precision),
        (TensorSpec("x", "FP32", (-1, WIDTH)),),
        (TensorSpec("scores", "FP32", (-1, 10)),),
        ModelFacts(17, 8, 4 * WIDTH * WIDTH * DEPTH, has_calibration=True),
        "class-1",
        frozenset({"avx2"}),
        1,
        measure_budget_s=0.2,
        calibration_file="calibration.npz",
        validation_file="validation.npz",
    )
    return replace(spec, **changes)


def silent(*_: Any) -> None:
    """Progress is not of interest."""


def workshop(directory: Path, recipe: Recipe) -> tuple[Workshop, Candidate]:
    """What a build has in hand once its artifact was judged."""
    spec, out, outlier = spec_of(recipe), directory / "out", example()
    model = directory / "model.onnx"
    order = BuildInput(
        model, recipe, spec.contract, spec.inputs, spec.outputs, spec.facts,
        {"x": outlier.samples(32, WIDTH, seed=1)}, out, 1, silent,
    )  # fmt: skip
    backend, ground = all_backends()[recipe.engine], NativeGround(spec)
    inputs = outlier.samples(32, WIDTH, seed=2)
    session = judging.load_source(model, threads=1)
    feeds = [{"x": inputs[index : index + 1]} for index in range(len(inputs))]
    evidence = judging.Evidence(feeds, [session.run(feed) for feed in feeds], None, "validation")
    session.close()
    first = judged(spec, recipe, backend.build(order), evidence, ground, out)
    return Workshop(spec, backend, order, evidence, ground), first


def repaired(directory: Path, recipe: Recipe) -> Repaired:
    shop, first = workshop(directory, recipe)
    assert not first.gate.passed
    return repair(shop, first, silent, gain=lambda candidate: 2.0)


@pytest.mark.parametrize("recipe", [STATIC, DYNAMIC], ids=lambda recipe: recipe.name)
def test_layers_beside_the_loud_tensor_stay_in_float_and_the_gate_passes(directory: Path, recipe: Recipe) -> None:
    result = repaired(directory, recipe)

    assert result.candidate.gate.passed
    assert set(result.candidate.recipe.excluded_nodes) == {"fc2", "fc3"}
    assert result.labels["mixed"].startswith("2 of 5 layers in float: fc")
    assert result.labels["mixed_gain"] == "2.00x the float artifact of the same engine"
    report = result.report
    assert report is not None
    assert report.ranked_by == "alone"
    assert [layer.node for layer in report.kept] == [layer.node for layer in report.layers[:2]]
    assert all("the gate needs it" in layer.kept for layer in report.kept)
    assert report.tries[-1].startswith("k=2: SNR")
    float_rows = {row.node: row.why for row in report.tensors if row.node in ("fc2", "fc3")}
    assert all(not row.quantised for row in report.tensors if row.node in ("fc2", "fc3"))
    assert all("the gate needs it" in why for why in float_rows.values())
    assert report.first_jump() is None


def test_mixed_artifact_lies_where_the_ordered_one_would_and_its_goldens_replay(directory: Path) -> None:
    result = repaired(directory, STATIC)

    files = result.candidate.built.files
    assert [path.parent for path in files.values()] == [directory / "out"]
    session = create_engine("onnxruntime").load(files, SessionOptions(threads=1))
    assert replay(session, directory / "out" / "goldens.npz").passed


def test_equal_orders_choose_equal_layers_and_give_equal_reports(
    directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("again")
    (other / "out").mkdir()
    (other / "model.onnx").write_bytes((directory / "model.onnx").read_bytes())

    one, two = repaired(directory, STATIC), repaired(other, STATIC)

    assert one.candidate.recipe == two.candidate.recipe
    assert one.report is not None
    assert two.report is not None
    assert one.report.to_bytes() == two.report.to_bytes()
    first, second = (next(iter(found.candidate.built.files.values())).read_bytes() for found in (one, two))
    assert first == second


def test_error_jumps_where_the_loud_tensor_is_quantised(directory: Path) -> None:
    shop, first = workshop(directory, STATIC)

    report = shop.layers_of(first, {})

    jump = report.first_jump()
    assert jump is not None
    assert jump.node == "fc3"
    assert [row.node for row in report.tensors if row.node.startswith("fc")] == ["fc1", "fc2", "fc3", "fc4"]
    assert all(row.quantised for row in report.tensors)
    assert sum(row.weight_share for row in report.tensors) == pytest.approx(1.0, abs=0.01)


def test_search_gives_up_where_int8_gains_nothing_and_says_so(directory: Path) -> None:
    shop, first = workshop(directory, STATIC)

    result = repair(shop, first, silent, gain=lambda candidate: 1.02)

    assert result.candidate is first
    assert result.report is not None
    assert result.report.tries[-1].endswith("gain 1.02x < 1.1x")
    assert result.report.kept == ()


def test_layers_that_the_order_keeps_in_float_stay_there_and_are_told_apart(directory: Path) -> None:
    result = repaired(directory, replace(STATIC, excluded_nodes=("fc1",)))

    assert set(result.candidate.recipe.excluded_nodes) == {"fc1", "fc2", "fc3"}
    assert result.report is not None
    reasons = {layer.node: layer.kept for layer in result.report.kept}
    assert reasons["fc1"] == "the order says so"
    assert "the gate needs it" in reasons["fc3"]


def test_openvino_layers_are_compared_and_ranked_by_the_same_names(directory: Path) -> None:
    from compiler_svc.worker.layers import report as layers

    shop, first = workshop(directory, OPENVINO)
    report = shop.layers_of(first, {})
    ranking = layers.rank(shop.probe(first, 60.0), report)

    jump = report.first_jump()
    assert jump is not None
    assert jump.node == "fc3"
    assert ranking.ranked_by == "alone"
    figures = {layer.node: layer.snr_db for layer in ranking.layers}
    assert figures.keys() == {"fc1", "fc2", "fc3", "fc4", "head"}
    assert ranking.layers[0].node == "fc3"
    assert all(value is not None and value < LIMIT_DB for value in figures.values())


async def test_child_ships_the_layers_of_an_int8_artifact_that_passes(directory: Path) -> None:
    spec = spec_of(replace(STATIC, excluded_nodes=("fc2", "fc3")))
    steps: list[Progress] = []

    result = await run_build(directory, spec, limits=ChildLimits(wall_s=120), on_progress=steps.append)

    assert isinstance(result, BuildResult), result
    (file,) = [file for file in result.files if file.role == "layers"]
    report = LayerReport.from_bytes(file.path.read_bytes())
    assert file.name == "layers.json"
    assert (report.samples, report.ranked_by) == (4, "")
    assert {layer.node for layer in report.kept} == {"fc2", "fc3"}
    assert "mixed" not in result.labels


async def test_child_that_cannot_mend_the_artifact_returns_the_report_with_the_failure(directory: Path) -> None:
    steps: list[Progress] = []

    outcome = await run_build(
        directory, spec_of(STATIC, mixed_budget_s=0.001), limits=ChildLimits(wall_s=120), on_progress=steps.append
    )

    assert isinstance(outcome, ChildFailure), outcome
    assert outcome.code == "gate_missed"
    assert "with layers in float: all quantised: SNR" in outcome.message
    assert outcome.layers is not None
    assert outcome.layers.ranked_by == "alone"
    assert outcome.layers.first_jump() is not None
    assert [step.fraction for step in steps] == sorted(step.fraction for step in steps)
