# SPDX-License-Identifier: Apache-2.0
"""The numeric gate: what passes, what fails, and that the report says why."""

from __future__ import annotations

import numpy as np
import pytest

from dovetail.accuracy import AccuracyPolicy
from dovetail.errors import InvalidInputError
from dovetail.gate import CAP_DB, DEFAULT_THRESHOLDS, GateReport, Thresholds, accuracy, compare_output, run_gate
from dovetail.tensor import Array, float32_to_bf16

CLASSES = AccuracyPolicy("classification")


@pytest.fixture
def scores() -> Array:
    return np.random.default_rng(3).standard_normal((200, 10)).astype(np.float32)


def noisy(scores: Array, size: float) -> Array:
    noise = np.random.default_rng(4).standard_normal(scores.shape) * size
    return (scores + noise).astype(scores.dtype)


def test_identical_outputs_pass_at_every_precision(scores: Array) -> None:
    for precision in DEFAULT_THRESHOLDS:
        report = run_gate({"y": scores}, {"y": scores.copy()}, precision=precision, policy=CLASSES)

        assert report.passed, report.failures
        assert report.outputs[0].snr_db == CAP_DB
        assert report.top1_agreement == 1.0


@pytest.mark.parametrize(("precision", "size"), [("fp32", 1e-3), ("fp16", 0.1), ("int8", 0.5)])
def test_noise_beyond_the_precision_fails_and_both_numbers_are_named(
    scores: Array, precision: str, size: float
) -> None:
    report = run_gate({"y": scores}, {"y": noisy(scores, size)}, precision=precision)

    assert not report.passed
    line = next(line for line in report.failures if "SNR" in line)
    assert "output y" in line
    assert f"allowed is {DEFAULT_THRESHOLDS[precision].min_snr_db:g}" in line


def test_noise_of_a_good_int8_artifact_passes_as_int8_but_not_as_fp16(scores: Array) -> None:
    candidate = {"y": noisy(scores, 0.02)}

    assert run_gate({"y": scores}, candidate, precision="int8").passed
    assert not run_gate({"y": scores}, candidate, precision="fp16").passed


def test_one_outlier_does_not_fail_the_gate_but_is_reported() -> None:
    reference = np.random.default_rng(3).standard_normal((200, 100)).astype(np.float32)
    candidate = reference.copy()
    candidate[5, 50] += 0.5

    report = run_gate({"y": reference}, {"y": candidate}, precision="int8")

    assert report.passed, report.failures
    assert report.outputs[0].max_error > 0.05


def test_figures_are_what_their_definitions_say() -> None:
    figures = compare_output("y", np.array([0.0, 2.0, 4.0]), np.array([0.0, 2.0, 5.0]))

    assert figures.mean_error == pytest.approx((1 / 3) / 4)
    assert figures.max_error == pytest.approx(0.25)
    assert figures.snr_db == pytest.approx(10 * np.log10(20 / 1))
    assert figures.cosine == pytest.approx(24 / np.sqrt(20 * 29))


def test_orthogonal_and_zero_outputs_have_no_similarity() -> None:
    assert compare_output("y", np.array([1.0, 0.0]), np.array([0.0, 1.0])).cosine == 0.0
    assert compare_output("y", np.zeros(3), np.ones(3)).cosine == 0.0
    assert compare_output("y", np.zeros(3), np.ones(3)).snr_db == -CAP_DB
    assert compare_output("y", np.zeros(3), np.zeros(3)).cosine == 1.0


@pytest.mark.parametrize(
    ("candidate", "text"),
    [
        ({}, "output y is missing"),
        ({"y": np.zeros((4, 3), np.float32)}, "shape [4, 3], the reference has [4, 2]"),
        ({"y": np.zeros((4, 2), np.float64)}, "dtype float64, the reference has float32"),
        ({"y": np.full((4, 2), np.nan, np.float32)}, "8 of 8 values are NaN or infinite"),
    ],
)
def test_structural_mismatch_is_a_failure_and_not_an_exception(candidate: dict[str, Array], text: str) -> None:
    report = run_gate({"y": np.ones((4, 2), np.float32)}, candidate, precision="fp32", policy=CLASSES)

    assert not report.passed
    assert any(text in line for line in report.failures), report.failures
    assert report.top1_agreement is None


def test_reference_with_nan_proves_nothing() -> None:
    bad = np.array([[np.nan, 1.0]], np.float32)

    report = run_gate({"y": bad}, {"y": bad}, precision="fp32")

    assert not report.passed
    assert "reference itself" in report.failures[0]


def test_no_samples_is_a_failure() -> None:
    empty = np.zeros((0, 10), np.float32)

    report = run_gate({"y": empty}, {"y": empty}, precision="fp32", policy=CLASSES, labels=np.zeros(0, np.int64))

    assert not report.passed
    assert report.samples == 0
    assert not run_gate({}, {}, precision="fp32").passed


def test_flipped_decisions_fail_although_the_distances_are_small() -> None:
    reference = np.tile(np.array([[10.0, 10.0001, 0.0]], np.float32), (100, 1))
    candidate = reference.copy()
    candidate[:5, 0] += 0.001

    report = run_gate({"y": reference}, {"y": candidate}, precision="int8", policy=CLASSES)

    assert report.top1_agreement == pytest.approx(0.95)
    assert report.failures == ("top-1 agreement is 95.00%, allowed is 99.00%",)


def test_lost_accuracy_fails_and_gained_accuracy_does_not() -> None:
    labels = np.arange(100) % 10
    right = np.eye(10, dtype=np.float32)[labels]
    wrong = right.copy()
    wrong[:3] = np.roll(wrong[:3], 1, axis=1)
    loose = Thresholds(0.0, -200, 1.0, 1.0, 0.0, 0.01)

    worse = run_gate({"y": right}, {"y": wrong}, precision="int8", labels=labels, policy=CLASSES, thresholds=loose)
    better = run_gate({"y": wrong}, {"y": right}, precision="int8", labels=labels, policy=CLASSES, thresholds=loose)

    assert worse.failures == ("accuracy fell from 100.00% to 97.00%, allowed is a drop of 1.00%",)
    assert (worse.metric, worse.metric_reference, worse.metric_candidate) == ("accuracy", 1.0, 0.97)
    assert better.passed


def test_class_ids_are_decisions_and_may_differ_as_rarely_as_top1() -> None:
    reference = np.arange(1000, dtype=np.int64)
    one_in_a_thousand, one_in_ten = reference.copy(), reference.copy()
    one_in_a_thousand[0] = -1
    one_in_ten[::10] = -1

    assert run_gate({"id": reference}, {"id": one_in_a_thousand}, precision="int8").passed
    report = run_gate({"id": reference}, {"id": one_in_ten}, precision="int8")
    assert report.failures == ("output id: 90.00% of the elements are equal, allowed is 99.00%",)


def test_texts_are_compared_element_by_element() -> None:
    reference = np.array([b"a", b"b"], dtype=object)

    assert run_gate({"t": reference}, {"t": reference.copy()}, precision="fp32").passed
    assert not run_gate({"t": reference}, {"t": np.array([b"a", b"c"], dtype=object)}, precision="fp32").passed


def test_bf16_outputs_are_compared_as_numbers_not_as_bits(scores: Array) -> None:
    bits = float32_to_bf16(scores)
    one_step_off = bits + 1

    report = run_gate({"y": bits}, {"y": one_step_off}, precision="int8", datatypes={"y": "BF16"})

    assert report.passed, report.failures
    assert report.outputs[0].snr_db > 30


def test_integer_first_output_counts_as_class_ids_for_accuracy() -> None:
    ids = np.array([1, 2, 3, 4])

    assert accuracy(ids, np.array([1, 2, 3, 0])) == 0.75
    report = run_gate({"id": ids}, {"id": ids}, precision="int8", labels=ids, policy=CLASSES)
    assert report.metric_candidate == 1.0


def test_labels_that_do_not_match_the_decisions_are_refused(scores: Array) -> None:
    with pytest.raises(InvalidInputError, match="200 decisions cannot be compared with 3 labels"):
        accuracy(scores, np.zeros(3, np.int64))


def test_unknown_precision_is_refused_by_name(scores: Array) -> None:
    with pytest.raises(InvalidInputError, match="'fp7'"):
        run_gate({"y": scores}, {"y": scores}, precision="fp7")


def test_report_survives_its_json_form(scores: Array) -> None:
    labels = np.argmax(scores, axis=1)

    report = run_gate({"y": scores}, {"y": noisy(scores, 1)}, precision="int8", labels=labels, policy=CLASSES)

    assert GateReport.from_json(report.to_json()) == report
    with pytest.raises(InvalidInputError):
        GateReport.from_json({"passed": True})
