# SPDX-License-Identifier: Apache-2.0
"""How a build's outputs are judged: by the model's policy, on whole pairs, with a note on what proves less."""

from __future__ import annotations

import numpy as np
import pytest

from compiler_svc.worker.build_spec import BuildSpec
from compiler_svc.worker.judging import Evidence, choose_goldens, gate_samples, judge
from dovetail.accuracy import AccuracyPolicy
from dovetail.contract import Contract
from dovetail.engines.goldens import compare_goldens
from dovetail.recipe import Recipe
from dovetail.rules import ModelFacts
from dovetail.tensor import Array, TensorSpec

X, Y = TensorSpec("x", "FP32", (-1, 2)), TensorSpec("y", "FP32", (-1, 4))
FOUND = TensorSpec("found", "FP32", (1, -1, 6))
CAR, DOG = [1.0, 1, 5, 5, 0.9, 0], [6.0, 6, 9, 9, 0.8, 1]


def spec_of(policy: AccuracyPolicy, output: TensorSpec = Y) -> BuildSpec:
    return BuildSpec(
        recipe=Recipe("ort-int8-dynamic", "onnxruntime", "cpu", "int8"),
        contract=Contract("onnxruntime", "cpu", "int8"),
        inputs=(X,),
        outputs=(output,),
        facts=ModelFacts(17, 8, 1000, False),
        hardware_class="here",
        cpu_features=frozenset(),
        threads=1,
        policy=policy,
    )


def evidence_of(reference: Array, labels: Array | None = None, origin: str = "validation") -> Evidence:
    feeds = [{"x": np.zeros((1, 2), np.float32)} for _ in reference]
    return Evidence(feeds, [{"y": row[None]} for row in reference], labels, origin)


@pytest.fixture
def outputs() -> Array:
    return np.random.default_rng(5).standard_normal((40, 4)).astype(np.float32)


def test_without_a_task_labels_make_a_classifier_and_their_absence_none(outputs: Array) -> None:
    labels = outputs.argmax(axis=1)
    actual = [{"y": row[None]} for row in outputs]

    labelled = judge(spec_of(AccuracyPolicy()), evidence_of(outputs, labels), actual)
    plain = judge(spec_of(AccuracyPolicy()), evidence_of(outputs), actual)

    assert (labelled.task, labelled.metric, labelled.metric_candidate) == ("classification", "accuracy", 1.0)
    assert (plain.task, plain.metric, plain.top1_agreement) == ("generic", "", None)


@pytest.mark.parametrize(
    ("origin", "said"),
    [("validation", ""), ("calibration", "calibration samples, which the build has seen"), ("synthetic", "synthetic")],
)
def test_inputs_that_prove_less_are_noted(outputs: Array, origin: str, said: str) -> None:
    report = judge(
        spec_of(AccuracyPolicy("generic")), evidence_of(outputs, origin=origin), [{"y": row[None]} for row in outputs]
    )

    assert (said in report.notes[0]) if said else (report.notes == ())


def test_the_policys_tolerances_judge_the_build_and_go_with_its_goldens(outputs: Array) -> None:
    off = outputs + 0.3 * np.random.default_rng(6).standard_normal(outputs.shape).astype(np.float32)
    actual = [{"y": row[None]} for row in off]
    loose = AccuracyPolicy(
        "generic", tolerances={"min_snr_db": 3, "min_cosine": 0.8, "max_mean_error": 1, "max_p999_error": 1}
    )

    assert not judge(spec_of(AccuracyPolicy("generic")), evidence_of(outputs), actual).passed
    assert judge(spec_of(loose), evidence_of(outputs), actual).passed
    goldens = choose_goldens(spec_of(loose), evidence_of(outputs), actual)
    assert goldens is not None
    assert dict(goldens.tolerances)["min_snr_db"] == 3
    assert compare_goldens(goldens, [{"y": run.outputs["y"] * 1.2} for run in goldens.runs]).passed


def test_detections_that_vary_in_number_are_judged_and_become_goldens() -> None:
    scenes = [[CAR], [CAR, DOG], [DOG]] * 8
    reference = [{"found": np.array([rows], np.float32)} for rows in scenes]
    turned = [{"found": np.array([rows[::-1]], np.float32)} for rows in scenes]
    evidence = Evidence([{"x": np.zeros((1, 2), np.float32)}] * 24, reference, None, "validation")
    spec = spec_of(AccuracyPolicy("detection"), FOUND)
    blind = [{"found": np.zeros((1, 0, 6), np.float32)}] * 24

    good, bad = judge(spec, evidence, turned), judge(spec, evidence, blind)
    goldens = choose_goldens(spec, evidence, turned)

    assert good.passed, good.failures
    assert (good.detection_agreement, bad.detection_agreement, bad.passed) == (1.0, 0.0, False)
    assert goldens is not None
    assert goldens.detections == "found"
    assert not compare_goldens(goldens, blind[: len(goldens.runs)]).passed


def test_a_large_set_of_pairs_is_thinned_by_whole_pairs() -> None:
    assert gate_samples(12, 6, "embedding") == [0, 1, 4, 5, 8, 9]
    assert gate_samples(12, 6, "classification") == [0, 2, 4, 6, 8, 10]
    assert gate_samples(4, 100, "embedding") == [0, 1, 2, 3]
