# SPDX-License-Identifier: Apache-2.0
"""Task metrics of classification and regression, and the value that every metric gives: reference, artifact, interval.

A metric is a fraction of which 1 is best. Those of embeddings and detections are in files of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dovetail.errors import InvalidInputError
from dovetail.gate.intervals import Interval, bootstrap_interval, paired_interval
from dovetail.tensor import Array


@dataclass(frozen=True, slots=True)
class MetricResult:
    """A task metric on labelled samples.

    Attributes:
        name: "accuracy", "R2", "Spearman" or "F1@0.5".
        reference: The reference's.
        candidate: The artifact's.
        interval: Confidence interval of reference - candidate; None if the samples are too few for one.
    """

    name: str
    reference: float
    candidate: float
    interval: Interval | None


def decisions(scores: Array) -> Array:
    """Class ids: the largest score of the last axis, or the array itself if it holds ids already."""
    return scores if scores.dtype.kind != "f" else np.argmax(scores, axis=-1)


def accuracy(scores: Array, labels: Array) -> float:
    """Fraction of samples that are right.

    Args:
        scores: Float array (samples, …, classes), largest score wins; or an integer array with one class id per sample.
        labels: Integer array with one class id per sample.

    Raises:
        InvalidInputError: There are not as many decisions as labels.
    """
    right = _right(scores, labels)
    return float(np.mean(right)) if right.size else 0.0


def accuracy_metric(reference: Array, candidate: Array, labels: Array) -> MetricResult:
    """Accuracy of both, and the interval of its drop from the samples on which they differ; raises as `accuracy`."""
    before, after = _right(reference, labels), _right(candidate, labels)
    lost, gained = int(np.sum(before & ~after)), int(np.sum(after & ~before))
    interval = paired_interval(lost, gained, before.size) if before.size else None
    return MetricResult("accuracy", accuracy(reference, labels), accuracy(candidate, labels), interval)


def regression_metric(reference: Array, candidate: Array, labels: Array) -> MetricResult:
    """Coefficient of determination R2: 1 - squared error / squared distance of the labels from their mean.

    With several numbers per sample the errors and the distances are summed over all of them.

    Args:
        reference: Float array (samples, …).
        candidate: Float array of the same shape.
        labels: Numeric array of the same shape; axes of length 1 may be missing.

    Raises:
        InvalidInputError: The labels have another number of elements, or are all equal.
    """
    truth = _like(labels, reference)
    spread = _sums((truth - truth.mean(axis=0)) ** 2)
    if spread.sum() == 0:
        raise InvalidInputError("R2 is not defined: the labels are equal on all samples")
    before, after = _sums((truth - reference) ** 2), _sums((truth - candidate) ** 2)

    def drop(chosen: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            change: Array = (after - before)[chosen].sum(axis=1) / spread[chosen].sum(axis=1)
        return change

    total = float(spread.sum())
    return MetricResult(
        "R2",
        1 - float(before.sum()) / total,
        1 - float(after.sum()) / total,
        bootstrap_interval(drop, len(truth)),
    )


def _right(scores: Array, labels: Array) -> Array:
    chosen, truth = decisions(scores).reshape(-1), labels.reshape(-1)
    if chosen.size != truth.size:
        raise InvalidInputError(
            f"{chosen.size} decisions cannot be compared with {truth.size} labels: a classification model gives one"
            " row of scores per sample in its first output; set the accuracy policy's task to generic otherwise"
        )
    same: Array = chosen == truth
    return same


def _like(labels: Array, outputs: Array) -> Array:
    if labels.size != outputs.size or len(labels) != len(outputs):
        raise InvalidInputError(
            f"labels of shape {list(labels.shape)} cannot be compared with an output of shape {list(outputs.shape)}:"
            " a regression model has one label for each number that it gives"
        )
    return labels.astype(np.float64).reshape(outputs.shape)


def _sums(values: Array) -> Array:
    """float64 array (samples,): sum over everything but the first axis."""
    sums: Array = values.reshape(len(values), -1).sum(axis=1, dtype=np.float64)
    return sums
