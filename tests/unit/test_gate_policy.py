# SPDX-License-Identifier: Apache-2.0
"""Policies: what their tolerances change, and which are refused when a model is pushed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dovetail.accuracy import AccuracyPolicy
from dovetail.errors import InvalidInputError
from dovetail.gate import check_labels, check_policy, default_thresholds, policy_thresholds, run_gate, threshold_changes
from dovetail.tensor import Array, TensorSpec

SCORES = TensorSpec("scores", "FP32", (-1, 10))
IDS = TensorSpec("ids", "INT64", (-1,))
ROWS = TensorSpec("rows", "FP32", (-1, 300, 6))


def test_tolerances_replace_defaults_and_the_report_says_so() -> None:
    reference = np.random.default_rng(0).standard_normal((50, 8))
    candidate = reference + 0.2 * np.random.default_rng(1).standard_normal(reference.shape)
    own = AccuracyPolicy(
        "generic", tolerances={"min_snr_db": 10, "min_cosine": 0.9, "max_mean_error": 0.1, "max_p999_error": 0.5}
    )

    assert not run_gate({"y": reference}, {"y": candidate}, precision="int8").passed
    report = run_gate({"y": reference}, {"y": candidate}, precision="int8", policy=own)

    assert report.passed, report.failures
    assert "judged by other than the default thresholds" in report.notes[0]
    assert "min_snr_db 10" in report.notes[0]


def test_changes_of_thresholds_rebuild_them() -> None:
    policy = AccuracyPolicy(max_metric_drop=0.03, tolerances={"min_snr_db": 12.5, "max_metric_drop_upper": 0.05})

    limits = policy_thresholds("int8", policy)
    changes = threshold_changes("int8", limits)

    assert changes == {"max_metric_drop": 0.03, "min_snr_db": 12.5, "max_metric_drop_upper": 0.05}
    assert policy_thresholds("int8", AccuracyPolicy(tolerances=changes)) == limits
    assert threshold_changes("fp16", default_thresholds("fp16")) == {}


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (AccuracyPolicy(tolerances={"min_snr": 20}), "tolerance 'min_snr' is not known; expected one of min_cosine"),
        (AccuracyPolicy(tolerances={"min_snr_db": math.nan}), "min_snr_db is nan; expected a finite number"),
        (AccuracyPolicy(tolerances={"min_snr_db": math.inf}), "min_snr_db is inf; expected a finite number"),
        (AccuracyPolicy(tolerances={"min_cosine": 1.5}), "min_cosine is 1.5; expected -1 to 1"),
        (AccuracyPolicy(tolerances={"max_mean_error": -0.1}), "max_mean_error is -0.1; expected 0 or larger"),
        (AccuracyPolicy(tolerances={"min_top1_agreement": 99}), "min_top1_agreement is 99; expected 0 to 1"),
        (AccuracyPolicy(max_metric_drop=1.5), "max_metric_drop, a fraction such as 0.01, is 1.5"),
        (AccuracyPolicy(max_metric_drop=0.1, tolerances={"max_metric_drop": 0.1}), "max_metric_drop is given twice"),
        (AccuracyPolicy(output="logits"), "the model has no output 'logits'; it has scores, ids, rows"),
        (AccuracyPolicy("regression", output="ids"), "'ids' is INT64 [-1], and task regression needs a floating-point"),
        (AccuracyPolicy("detection"), "understands one layout, (samples, detections, 6)"),
    ],
)
def test_a_policy_that_cannot_be_judged_is_refused_by_name(policy: AccuracyPolicy, text: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        check_policy(policy, (SCORES, IDS, ROWS))

    assert text in str(refused.value)


@pytest.mark.parametrize(
    "policy",
    [
        AccuracyPolicy(),
        AccuracyPolicy("classification", output="ids"),
        AccuracyPolicy("embedding"),
        AccuracyPolicy("detection", output="rows", tolerances={"min_top1_agreement": 0.95}),
    ],
)
def test_a_policy_that_fits_is_accepted(policy: AccuracyPolicy) -> None:
    check_policy(policy, (SCORES, IDS, ROWS))


@pytest.mark.parametrize(
    ("task", "labels", "fits"),
    [
        ("", np.zeros(4, np.int64), True),
        ("classification", np.zeros((4, 1), np.int32), True),
        ("classification", np.zeros(4), False),
        ("classification", np.zeros(3, np.int64), False),
        ("classification", np.zeros((), np.int64), False),
        ("regression", np.zeros((4, 7)), True),
        ("regression", np.zeros((3, 7)), False),
        ("embedding", np.zeros(2), True),
        ("embedding", np.zeros(4), True),
        ("embedding", np.zeros(3), False),
        ("detection", np.zeros((4, 9, 5)), True),
        ("detection", np.zeros((4, 9, 5), np.int64), False),
        ("detection", np.zeros((4, 9, 6)), False),
    ],
)
def test_labels_have_the_form_of_their_task(task: str, labels: Array, fits: bool) -> None:
    if fits:
        check_labels(labels, task, 4)
        return
    with pytest.raises(InvalidInputError, match=f"task {task or 'classification'} wants"):
        check_labels(labels, task, 4)
