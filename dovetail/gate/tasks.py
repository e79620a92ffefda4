# SPDX-License-Identifier: Apache-2.0
"""What each task judges beside the distances: a function for each, from outputs and labels to figures and failures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from dovetail.errors import InvalidInputError
from dovetail.gate.claim import claim_text, metric_failures
from dovetail.gate.detection import detection_agreement, detection_metric, rows_of
from dovetail.gate.embedding import row_cosines, similarity_metric, vectors
from dovetail.gate.intervals import share_interval
from dovetail.gate.metrics import MetricResult, accuracy_metric, decisions, regression_metric
from dovetail.gate.report import GateReport
from dovetail.gate.thresholds import Thresholds
from dovetail.tensor import Array


@dataclass(frozen=True, slots=True)
class TaskCase:
    """One output to judge as its task wants it; both arrays are comparable and finite.

    Attributes:
        expected: The reference's array, first axis is the sample.
        actual: The artifact's.
        labels: As the task wants them, or None.
        limits: What must be reached.
    """

    expected: Array
    actual: Array
    labels: Array | None
    limits: Thresholds


@dataclass(frozen=True, slots=True)
class TaskFindings:
    """What a task found.

    Attributes:
        figures: Field of GateReport -> value.
        failures: Thresholds missed.
        metric: The task metric, if there are labels.
    """

    figures: Mapping[str, Any]
    failures: tuple[str, ...] = ()
    metric: MetricResult | None = None


def judge_task(task: str, case: TaskCase, report: GateReport) -> GateReport:
    """The report with what the task adds; a task that cannot be judged on this output is a failure.

    Args:
        task: A key of TASKS.
        case: What to judge.
        report: So far.
    """
    try:
        findings = TASKS[task](case)
    except InvalidInputError as exc:
        return replace(report, failures=(*report.failures, str(exc)))
    failures = (*report.failures, *findings.failures)
    metric = findings.metric
    if metric is None:
        return replace(report, **findings.figures, failures=failures)
    low, high = metric.interval or (None, None)
    return replace(
        report,
        **findings.figures,
        metric=metric.name,
        metric_reference=metric.reference,
        metric_candidate=metric.candidate,
        metric_drop=metric.reference - metric.candidate,
        metric_drop_low=low,
        metric_drop_high=high,
        claim=claim_text(metric, report.samples),
        failures=(*failures, *metric_failures(metric, case.limits)),
    )


def _classification(case: TaskCase) -> TaskFindings:
    same = decisions(case.expected) == decisions(case.actual)
    agreement, least = float(np.mean(same)), case.limits.min_top1_agreement
    low, high = share_interval(int(np.sum(same)), same.size)
    figures = {"top1_agreement": agreement, "top1_agreement_low": low, "top1_agreement_high": high}
    failures = [f"top-1 agreement is {agreement:.2%}, allowed is {least:.2%}"] if agreement < least else []
    metric = None if case.labels is None else accuracy_metric(case.expected, case.actual, case.labels)
    return TaskFindings(figures, tuple(failures), metric)


def _regression(case: TaskCase) -> TaskFindings:
    metric = None if case.labels is None else regression_metric(case.expected, case.actual, case.labels)
    return TaskFindings({}, (), metric)


def _embedding(case: TaskCase) -> TaskFindings:
    cosines = row_cosines(vectors(case.expected), vectors(case.actual))
    mean, tail = float(cosines.mean()), float(np.quantile(cosines, 0.01))
    failures = [
        f"{what} of the embeddings' cosine is {got:.6g}, allowed is {least:.6g}"
        for what, got, least in (
            ("mean", mean, case.limits.row_cosine_mean),
            ("1st percentile", tail, case.limits.row_cosine_p1),
        )
        if got < least
    ]
    metric = None if case.labels is None else similarity_metric(case.expected, case.actual, case.labels)
    return TaskFindings({"row_cosine_mean": mean, "row_cosine_p1": tail}, tuple(failures), metric)


def _detection(case: TaskCase) -> TaskFindings:
    expected, actual = rows_of(list(case.expected)), rows_of(list(case.actual))
    agreement, least = detection_agreement(expected, actual), case.limits.min_top1_agreement
    failures = [f"{agreement:.2%} of the detections are the same (F1), allowed is {least:.2%}"]
    metric = None if case.labels is None else detection_metric(expected, actual, case.labels)
    return TaskFindings({"detection_agreement": agreement}, tuple(failures if agreement < least else ()), metric)


TASKS: Mapping[str, Callable[[TaskCase], TaskFindings]] = MappingProxyType(
    {
        "classification": _classification,
        "regression": _regression,
        "embedding": _embedding,
        "detection": _detection,
    }
)
"""Task -> what it judges. A generic model has none: only distances."""

METRIC_OF: Mapping[str, str] = MappingProxyType(
    {"classification": "accuracy", "regression": "R2", "embedding": "Spearman correlation", "detection": "F1"}
)
"""Task -> its metric in words, for saying that it was not taken."""
