# SPDX-License-Identifier: Apache-2.0
"""The child process: real intakes and builds, and every way a child can end badly. Nothing here is mocked."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from compiler_svc.intake.limits import ModelLimits
from compiler_svc.worker.build_spec import (
    BuildResult,
    IntakeOutcome,
    IntakeSpec,
    Progress,
)
from compiler_svc.worker.child_failure import ChildFailure, FailureKind
from compiler_svc.worker.sandbox import run_build, run_intake
from dovetail.accuracy import AccuracyPolicy
from dovetail.engines import SessionOptions, create_engine
from dovetail.engines.goldens import read_goldens, replay
from dovetail.errors import ErrorCode, OverLimitError, UnsupportedError
from dovetail.recipe import Recipe
from dovetail.tensor import TensorSpec
from tests.fakes.child_orders import DYNAMIC, FP32, IMAGE, LIMITS, LOGITS, STATIC, silent, spec_of
from tests.fakes.onnx_models import conv_net, elementwise, images, model_of, nan_model, save


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A child's directory with a model, calibration samples, and validation samples labelled by the model itself."""
    save(conv_net(), tmp_path / "model.onnx")
    np.savez(tmp_path / "calibration.npz", image=images(32))
    session = create_engine("onnxruntime").load({"model.onnx": tmp_path / "model.onnx"}, SessionOptions(threads=1))
    validation = images(64, seed=5)
    labels = session.run({"image": validation})["logits"].argmax(axis=1)
    np.savez(tmp_path / "validation.npz", image=validation, label=labels)
    return tmp_path


# --- intake ---------------------------------------------------------------------------------------------------------


async def test_intake_gives_a_normalised_model_and_facts_of_the_samples(directory: Path) -> None:
    steps: list[Progress] = []
    spec = IntakeSpec(calibration_file="calibration.npz", validation_file="validation.npz")

    outcome = await run_intake(directory, spec, limits=LIMITS, on_progress=steps.append)

    assert isinstance(outcome, IntakeOutcome), outcome
    assert outcome.model == directory / "out" / "model.onnx"
    assert (outcome.inputs, outcome.outputs) == ((IMAGE,), (LOGITS,))
    assert (outcome.calibration.count, outcome.calibration.labelled) == (32, False)
    assert (outcome.validation.count, outcome.validation.labelled) == (64, True)
    assert len(outcome.model_digest) == 64
    assert [step.phase for step in steps] == ["intake"] * len(steps)
    assert steps[-1].fraction == 1.0


async def test_intake_packs_external_data_under_names_of_our_own(directory: Path) -> None:
    import onnx

    inside = await run_intake(directory, IntakeSpec(), limits=LIMITS, on_progress=silent)
    onnx.save(conv_net(), str(directory / "e.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    (directory / "w.bin").rename(directory / "external-0")

    spec = IntakeSpec(model_file="e.onnx", external_files={"w.bin": "external-0"})
    outcome = await run_intake(directory, spec, limits=LIMITS, on_progress=silent)

    assert isinstance(inside, IntakeOutcome)
    assert isinstance(outcome, IntakeOutcome), outcome
    assert outcome.model_digest == inside.model_digest
    assert outcome.notes == ("6 tensors packed from external data",)


@pytest.mark.parametrize(
    ("content", "limits", "error", "text"),
    [
        (b"nonsense", ModelLimits(), ErrorCode.INVALID_INPUT, "not an ONNX file"),
        (conv_net().SerializeToString()[:900], ModelLimits(), ErrorCode.INVALID_INPUT, "truncated"),
        (conv_net().SerializeToString(), ModelLimits(nodes=2), ErrorCode.OVER_LIMIT, "more than 2 nodes"),
        (elementwise("Nope").SerializeToString(), ModelLimits(), ErrorCode.UNSUPPORTED, "no operator Nope"),
    ],
)
async def test_refused_model_is_a_deterministic_failure_with_our_own_error(
    directory: Path, content: bytes, limits: ModelLimits, error: ErrorCode, text: str
) -> None:
    (directory / "model.onnx").write_bytes(content)

    outcome = await run_intake(directory, IntakeSpec(limits=limits), limits=LIMITS, on_progress=silent)

    assert isinstance(outcome, ChildFailure)
    assert (outcome.kind, outcome.error, outcome.code) == (FailureKind.DETERMINISTIC, error, error.value)
    assert text in outcome.message
    assert str(directory) not in outcome.message + outcome.log_tail


@pytest.mark.parametrize(
    ("task", "array", "text"),
    [("", "", "no class of the model"), ("generic", "", ""), ("", "truth", "no array 'truth'")],
)
async def test_labels_are_held_against_the_model(directory: Path, task: str, array: str, text: str) -> None:
    np.savez(directory / "validation.npz", image=images(4), label=np.full(4, 10))
    spec = IntakeSpec(validation_file="validation.npz", label_array=array, task=task)

    outcome = await run_intake(directory, spec, limits=LIMITS, on_progress=silent)

    if text:
        assert isinstance(outcome, ChildFailure)
        assert text in outcome.message
    else:
        assert isinstance(outcome, IntakeOutcome), outcome


def test_failures_become_the_matching_exception() -> None:
    failure = ChildFailure(FailureKind.DETERMINISTIC, "unsupported", "no such operator", error=ErrorCode.UNSUPPORTED)

    assert isinstance(failure.to_error(), UnsupportedError)
    assert str(failure.to_error()) == "no such operator"
    assert isinstance(replace(failure, error=ErrorCode.OVER_LIMIT).to_error(), OverLimitError)


async def test_overlapping_samples_are_refused(directory: Path) -> None:
    spec = IntakeSpec(calibration_file="validation.npz", validation_file="validation.npz")

    outcome = await run_intake(directory, spec, limits=LIMITS, on_progress=silent)

    assert isinstance(outcome, ChildFailure)
    assert "64 of 64 calibration samples are also validation samples" in outcome.message


# --- build ----------------------------------------------------------------------------------------------------------


async def test_build_gives_files_gate_figures_and_goldens_that_replay(directory: Path) -> None:
    steps: list[Progress] = []
    spec = spec_of(STATIC, calibration_file="calibration.npz", validation_file="validation.npz")

    result = await run_build(directory, spec, limits=LIMITS, on_progress=steps.append)

    assert isinstance(result, BuildResult), result
    assert result.gate.passed
    assert (result.gate.samples, result.gate.metric, result.gate.metric_reference) == (64, "accuracy", 1.0)
    assert result.benchmarks[0].p50_ms > 0
    assert result.benchmarks[0].baseline_p50_ms > 0
    assert result.benchmarks[0].windows >= 3
    assert result.benchmarks[0].hardware_class == "class-1"
    assert result.contract.min_memory_bytes >= result.benchmarks[0].peak_rss_bytes > 0
    assert result.contract.details["kept"] == "yes"
    assert result.labels["calibration"] == "minmax, 32 samples"
    assert result.labels["gate_inputs"] == "validation, 64 samples"
    assert result.max_batch_size == 64
    assert {"onnxruntime", "onnx"} <= result.toolchain.keys()
    assert [step.phase for step in steps][-1] == "measuring"
    assert [step.fraction for step in steps] == sorted(step.fraction for step in steps)
    files = {file.name: file for file in result.files}
    session = create_engine("onnxruntime").load({"model.onnx": files["model.onnx"].path}, SessionOptions(threads=1))
    assert replay(session, files["goldens.npz"].path).passed
    assert read_goldens(files["goldens.npz"].path).precision == "int8"
    assert files["goldens.npz"].role == "goldens"


async def test_equal_orders_give_equal_files(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    spec = spec_of(STATIC, calibration_file="calibration.npz", validation_file="validation.npz")
    digests = []
    for _ in range(2):
        copy = tmp_path_factory.mktemp("child")
        for name in ("model.onnx", "calibration.npz", "validation.npz"):
            (copy / name).write_bytes((directory / name).read_bytes())
        result = await run_build(copy, spec, limits=LIMITS, on_progress=silent)
        assert isinstance(result, BuildResult), result
        digests.append({file.name: file.digest for file in result.files})

    assert digests[0] == digests[1]


async def test_rows_that_influence_each_other_are_never_batched(directory: Path) -> None:
    spec = spec_of(DYNAMIC, validation_file="validation.npz", policy=AccuracyPolicy(max_metric_drop=1.0))

    result = await run_build(directory, spec, limits=LIMITS, on_progress=silent)

    assert isinstance(result, BuildResult), result
    assert result.max_batch_size == 0
    assert result.labels["calibration"] == "uncalibrated"


async def test_model_with_a_fixed_batch_is_never_batched(directory: Path) -> None:
    save(conv_net(batch=1), directory / "model.onnx")
    fixed = {"inputs": (replace(IMAGE, shape=(1, 1, 8, 8)),), "outputs": (replace(LOGITS, shape=(1, 10)),)}

    result = await run_build(
        directory, spec_of(FP32, validation_file="validation.npz", **fixed), limits=LIMITS, on_progress=silent
    )

    assert isinstance(result, BuildResult), result
    assert result.max_batch_size == 0


async def test_missed_gate_is_a_failure_that_still_carries_report_and_figures(directory: Path) -> None:
    labels = {"label": np.full(64, 3)}
    np.savez(directory / "validation.npz", image=images(64, seed=5) * 100, **labels)
    spec = spec_of(STATIC, calibration_file="calibration.npz", validation_file="validation.npz")

    outcome = await run_build(directory, spec, limits=LIMITS, on_progress=silent)

    assert isinstance(outcome, ChildFailure)
    assert (outcome.code, outcome.kind) == ("gate_missed", FailureKind.DETERMINISTIC)
    assert outcome.message.startswith("ort-int8-static missed the accuracy gate: output logits")
    assert outcome.gate is not None
    assert not outcome.gate.passed
    assert outcome.benchmark is not None
    assert outcome.benchmark.p50_ms > 0
    assert outcome.size_bytes > 0
    assert outcome.labels["calibration"] == "minmax, 32 samples"


async def test_nan_producing_model_is_refused_with_its_own_code(directory: Path) -> None:
    save(nan_model(), directory / "model.onnx")
    tensors = {"inputs": (TensorSpec("x", "FP32", (-1, 2)),), "outputs": (TensorSpec("y", "FP32", (-1, 2)),)}

    outcome = await run_build(directory, spec_of(FP32, **tensors), limits=LIMITS, on_progress=silent)

    assert isinstance(outcome, ChildFailure)
    assert (outcome.code, outcome.kind) == ("reference_not_finite", FailureKind.DETERMINISTIC)
    assert "gives NaN or infinite values in output 'y'" in outcome.message
    assert "synthetic samples" in outcome.message


async def test_static_int8_without_samples_is_refused(directory: Path) -> None:
    outcome = await run_build(directory, spec_of(STATIC), limits=LIMITS, on_progress=silent)

    assert isinstance(outcome, ChildFailure)
    assert (outcome.code, outcome.error) == ("precondition", ErrorCode.PRECONDITION)
    assert "needs calibration samples" in outcome.message


async def test_engine_without_a_backend_is_refused_by_name(directory: Path) -> None:
    recipe = Recipe("blob", "litert", "cpu", "fp16")

    outcome = await run_build(directory, spec_of(recipe), limits=LIMITS, on_progress=silent)

    assert isinstance(outcome, ChildFailure)
    assert outcome.error is ErrorCode.UNSUPPORTED
    assert "no backend for engine 'litert'" in outcome.message


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed here")
async def test_engine_whose_library_is_not_here_is_refused_with_what_to_install(directory: Path) -> None:
    recipe = Recipe("plan", "tensorrt", "cuda", "fp16")

    outcome = await run_build(directory, spec_of(recipe), limits=LIMITS, on_progress=silent)

    assert isinstance(outcome, ChildFailure)
    assert outcome.error is ErrorCode.UNSUPPORTED
    assert "tensorrt is not installed: pip install 'dovetail[tensorrt]'" in outcome.message


async def test_without_samples_the_gate_says_that_it_used_synthetic_inputs(directory: Path) -> None:
    result = await run_build(directory, spec_of(FP32), limits=LIMITS, on_progress=silent)

    assert isinstance(result, BuildResult), result
    assert result.labels["gate_inputs"] == "synthetic, 16 samples"
    assert result.gate.metric == ""


async def test_model_that_needs_real_inputs_asks_for_samples(directory: Path) -> None:
    value = helper.make_tensor_value_info
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    save(model_of([node], [value("x", 1, ["n"]), value("shape", 7, [2])], [value("y", 1, [None, None])]),
         directory / "model.onnx")  # fmt: skip
    tensors = {
        "inputs": (TensorSpec("x", "FP32", (-1,)), TensorSpec("shape", "INT64", (2,))),
        "outputs": (TensorSpec("y", "FP32", (-1, -1)),),
    }

    outcome = await run_build(directory, spec_of(FP32, **tensors), limits=LIMITS, on_progress=silent)

    assert isinstance(outcome, ChildFailure)
    assert outcome.error is ErrorCode.PRECONDITION
    assert "push validation samples" in outcome.message
