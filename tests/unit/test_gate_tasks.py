# SPDX-License-Identifier: Apache-2.0
"""What each task judges beside distances: R2, embeddings, detections, and the interval of every metric."""

from __future__ import annotations

import numpy as np
import pytest

from dovetail.accuracy import AccuracyPolicy
from dovetail.errors import InvalidInputError
from dovetail.gate import GateReport, padded_detections, run_gate
from dovetail.gate.detection import detection_agreement, rows_of
from dovetail.gate.embedding import row_cosines, similarity_metric, vectors
from dovetail.gate.metrics import regression_metric
from dovetail.tensor import Array

LOOSE = {
    "min_cosine": -1.0, "min_snr_db": -200.0, "max_mean_error": 9.0, "max_p999_error": 9.0, "min_top1_agreement": 0.0,
    "min_row_cosine_mean": -1.0, "min_row_cosine_p1": -1.0,
}  # fmt: skip
"""Tolerances that leave the task metric alone to decide."""


def judged(
    task: str, reference: Array, candidate: Array, labels: Array | None = None, *, loose: bool = True
) -> GateReport:
    policy = AccuracyPolicy(task, tolerances=LOOSE if loose else {})
    return run_gate({"y": reference}, {"y": candidate}, precision="int8", policy=policy, labels=labels)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(11)


def test_accuracy_comes_with_the_interval_of_its_drop_and_the_claim(random: np.random.Generator) -> None:
    labels = random.integers(0, 4, 400)
    reference = np.eye(4, dtype=np.float32)[labels]
    candidate = reference.copy()
    candidate[:2] = np.roll(candidate[:2], 1, axis=1)

    report = judged("classification", reference, candidate, labels)

    assert report.metric_drop == pytest.approx(0.005)
    assert report.metric_drop_low is not None
    assert report.metric_drop_high is not None
    assert report.metric_drop_low < 0.005 < report.metric_drop_high < 0.02
    assert report.claim == "drop not resolved: 400 samples resolve no less than 1.8 pt at 95 %"
    assert report.top1_agreement_low is not None
    assert report.top1_agreement_low < 0.995
    assert report.passed


def test_r2_is_what_its_definition_says() -> None:
    labels = np.array([[1.0], [2.0], [3.0], [4.0]])
    reference, candidate = labels.copy(), labels + np.array([[1.0], [0.0], [0.0], [0.0]])

    metric = regression_metric(reference, candidate, labels[:, 0])

    assert (metric.name, metric.reference, metric.candidate) == ("R2", 1.0, pytest.approx(1 - 1 / 5))
    assert metric.interval is None  # four samples


def test_a_worse_regression_fails_by_its_metric_and_the_interval_holds_the_drop(random: np.random.Generator) -> None:
    labels = random.standard_normal((200, 3))
    reference = labels + 0.05 * random.standard_normal(labels.shape)
    candidate = reference + 0.3 * random.standard_normal(labels.shape)

    report = judged("regression", reference, candidate, labels)

    assert not report.passed
    assert report.failures[0].startswith("R2 fell from")
    assert report.metric_drop is not None
    assert report.metric_drop_low is not None
    assert report.metric_drop_high is not None
    assert 0 < report.metric_drop_low < report.metric_drop < report.metric_drop_high
    assert report.claim.startswith("drop of ")


def test_equal_regression_labels_prove_nothing_and_that_is_a_failure() -> None:
    ones = np.ones((30, 1))

    assert judged("regression", ones, ones, ones).failures == (
        "R2 is not defined: the labels are equal on all samples",
    )


def test_embeddings_without_labels_are_judged_by_each_rows_direction(random: np.random.Generator) -> None:
    reference = random.standard_normal((100, 16))
    candidate = reference.copy()
    candidate[:5] = -candidate[:5]

    report = judged("embedding", reference, candidate, loose=False)

    assert report.row_cosine_mean == pytest.approx(0.9)
    assert report.row_cosine_p1 == pytest.approx(-1.0)
    assert any(line.startswith("mean of the embeddings' cosine is 0.9") for line in report.failures)
    assert "Spearman correlation was not judged: there are no labels" in report.notes


def test_tokens_are_averaged_and_zero_rows_are_only_like_zero_rows() -> None:
    tokens = np.arange(12.0).reshape(1, 3, 4)

    assert vectors(tokens).tolist() == [[4.0, 5.0, 6.0, 7.0]]
    assert row_cosines(np.zeros((2, 2)), np.array([[0.0, 0.0], [1.0, 0.0]])).tolist() == [1.0, 0.0]
    with pytest.raises(InvalidInputError, match="holds no embeddings"):
        vectors(np.zeros(3))


def test_spearman_is_that_of_the_similarities_of_consecutive_pairs() -> None:
    angles = np.array([0.0, 0.1, 0.0, 0.5, 0.0, 0.9, 0.0, 1.3])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)

    falling = similarity_metric(rows, rows, np.array([5.0, 4.0, 3.0, 1.0]))
    swapped = similarity_metric(rows, rows, np.array([4.0, 5.0, 3.0, 1.0]))
    by_sample = similarity_metric(rows, rows, np.array([5.0, 0, 4.0, 0, 3.0, 0, 1.0, 0]))

    assert (falling.reference, by_sample.reference) == (pytest.approx(1.0), pytest.approx(1.0))
    assert swapped.reference == pytest.approx(1 - 6 * 2 / (4 * 15))


def test_ties_share_their_rank() -> None:
    angles = np.array([0.0, 0.1, 0.0, 0.5, 0.0, 0.9])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)

    assert similarity_metric(rows, rows, np.array([2.0, 2.0, 1.0])).reference == pytest.approx(np.sqrt(3) / 2)


@pytest.mark.parametrize(("rows", "labels"), [(5, 5), (6, 4), (6, 0)])
def test_labels_that_are_neither_samples_nor_pairs_are_a_failure(rows: int, labels: int) -> None:
    outputs = np.random.default_rng(0).standard_normal((rows, 3))

    report = judged("embedding", outputs, outputs, np.arange(float(labels)))

    assert not report.passed
    assert "pairs of consecutive samples" in report.failures[0]


def boxes(*rows: tuple[float, ...]) -> Array:
    return np.array([rows], np.float32)


CAR = (10.0, 10.0, 50.0, 50.0, 0.9, 1.0)
DOG = (60.0, 60.0, 90.0, 90.0, 0.8, 2.0)


def test_detections_may_change_their_order_and_be_padded() -> None:
    padding = (0.0,) * 6

    report = judged("detection", boxes(CAR, DOG, padding), boxes(padding, DOG, CAR), loose=False)

    assert report.passed, report.failures
    assert (report.detection_agreement, report.outputs) == (1.0, ())


@pytest.mark.parametrize(
    "other",
    [
        (10.0, 10.0, 50.0, 50.0, 0.9, 3.0),  # another class
        (40.0, 40.0, 80.0, 80.0, 0.9, 1.0),  # hardly any overlap
        (10.0, 10.0, 50.0, 50.0, 0.1, 1.0),  # not shown
    ],
)
def test_a_detection_that_is_another_one_is_lost(other: tuple[float, ...]) -> None:
    report = judged("detection", boxes(CAR, DOG), boxes(other, DOG), loose=False)

    assert not report.passed
    assert "of the detections are the same (F1), allowed is 99.00%" in report.failures[0]


def test_a_score_that_crosses_the_line_by_a_little_loses_nothing() -> None:
    above, below = (*CAR[:4], 0.26, 1.0), (*CAR[:4], 0.24, 1.0)

    assert detection_agreement(rows_of([boxes(above)]), rows_of([boxes(below)])) == 1.0


def test_two_boxes_cannot_match_the_same_one() -> None:
    assert detection_agreement(rows_of([boxes(CAR, CAR)]), rows_of([boxes(CAR)])) == pytest.approx(2 / 3)


def test_nothing_found_by_either_is_agreement() -> None:
    nothing = np.zeros((1, 0, 6), np.float32)

    assert detection_agreement(rows_of([nothing]), rows_of([nothing])) == 1.0


def test_labelled_objects_give_f1_with_an_interval_that_allows_for_what_was_not_seen() -> None:
    scene = np.concatenate([boxes(CAR, DOG)] * 40)
    truth = np.array([[[1, 10, 10, 50, 50], [-1, 0, 0, 0, 0]]] * 40, np.float32)

    report = judged("detection", scene, scene, truth)

    assert report.metric == "F1@0.5"
    assert report.metric_reference == pytest.approx(2 * 40 / (80 + 40))
    assert report.metric_drop_high == pytest.approx(1.96**2 / (40 + 1.96**2), rel=1e-3)
    assert report.claim.startswith("drop not resolved: 40 samples")


def test_lost_objects_lower_f1() -> None:
    scene = np.concatenate([boxes(CAR, DOG)] * 40)
    blind = scene.copy()
    blind[:10, 0, 4] = 0.0
    truth = np.array([[[1, 10, 10, 50, 50], [2, 60, 60, 90, 90]]] * 40, np.float32)

    report = judged("detection", scene, blind, truth)

    assert report.metric_candidate == pytest.approx(2 * 70 / (70 + 80))
    assert any(line.startswith("F1@0.5 fell from 100.00% to 93.33%") for line in report.failures)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (np.zeros((2, 1, 5), np.float32), "labels of shape [2, 1, 5] for 1 samples"),
        (np.zeros((1, 4), np.float32), "labels of shape [1, 4]"),
        (np.full((1, 1, 5), -1.0), "no sample has a labelled object"),
    ],
)
def test_labels_in_another_form_are_a_failure(labels: Array, text: str) -> None:
    report = judged("detection", boxes(CAR), boxes(CAR), labels)

    assert any(text in line for line in report.failures), report.failures


@pytest.mark.parametrize("shape", [(1, 4, 7), (2, 3, 6), (6,)])
def test_another_layout_of_detections_is_refused_with_the_one_that_is_understood(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match="float \\(samples, detections, 6\\) with x1, y1, x2, y2, score, class"):
        rows_of([np.zeros(shape, np.float32)])


def test_nan_scores_are_not_taken_for_padding() -> None:
    broken = boxes((*CAR[:4], float("nan"), 1.0))

    report = judged("detection", padded_detections([boxes(CAR)], 1), padded_detections([broken], 1))

    assert "NaN" in report.failures[0]


def test_the_policys_output_is_the_one_that_is_judged(random: np.random.Generator) -> None:
    labels = random.integers(0, 3, 60)
    outputs = {"noise": random.standard_normal((60, 3)), "scores": np.eye(3)[labels]}

    report = run_gate(
        outputs, outputs, precision="int8", policy=AccuracyPolicy("classification", output="scores"), labels=labels
    )
    unknown = run_gate(outputs, outputs, precision="int8", policy=AccuracyPolicy("classification", output="other"))

    assert report.metric_reference == 1.0
    assert unknown.failures == ("the accuracy policy names output 'other', which the model does not have",)


def test_a_report_with_every_figure_survives_its_json_form_and_an_old_one_is_still_read() -> None:
    report = judged("detection", boxes(CAR), boxes(DOG), np.array([[[1, 10, 10, 50, 50]]], np.float32))
    old = GateReport(True, "fp32", 3).to_json()
    known = {"passed", "precision", "samples", "outputs", "top1_agreement", "metric", "metric_reference"}
    old = {name: value for name, value in old.items() if name in known | {"metric_candidate", "failures"}}

    assert GateReport.from_json(report.to_json()) == report
    assert GateReport.from_json(old) == GateReport(True, "fp32", 3)
