# SPDX-License-Identifier: Apache-2.0
"""How detections are judged: which are found again, in the reference and in the labels.

One layout is understood, that of detectors with non-maximum suppression in their graph: one float output whose last
axis has six numbers, `x1, y1, x2, y2, score, class`, with `(samples, detections, 6)` for all samples, or
`(detections, 6)` for a model that takes one sample at a time. Corners may be in pixels or fractions. A row with a score
of 0 or less is padding. Order and number of the rows do not matter.

Labels, if there are any, are a float array `(samples, objects, 5)` of `class, x1, y1, x2, y2`, in the same
coordinates, padded with rows of class -1.

The figures are F1 values over all samples at one score and one overlap. They are sums of counts, so that every sample
weighs by what is on it and an interval follows from resampling samples; mean average precision is no such sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dovetail.errors import InvalidInputError
from dovetail.gate.intervals import Interval, bootstrap_interval, unseen_share
from dovetail.gate.metrics import MetricResult
from dovetail.tensor import Array

ROW = 6
LABEL_ROW = 5
MIN_SCORE = 0.25
"""Detections from this score on count: the default at which the usual YOLO tools show one."""

SCORE_MARGIN = 0.05
"""When two runs are compared, the partner may score so much less: a score that crosses the line is no lost object."""

MIN_OVERLAP = 0.5
"""Intersection over union from which two boxes are the same object. Source: PASCAL VOC development kit."""


def rows_of(outputs: Sequence[Array]) -> list[Array]:
    """One float64 array (detections, 6) for each sample, from one output array per sample.

    Raises:
        InvalidInputError: The layout is another one.
    """
    found = []
    for output in outputs:
        rows = output[0] if output.ndim == 3 and len(output) == 1 else output
        if rows.ndim != 2 or rows.shape[1] != ROW or rows.dtype.kind != "f":
            raise InvalidInputError(
                f"an output of dtype {output.dtype} and shape {list(output.shape)} holds no detections in the layout"
                " that is understood: float (samples, detections, 6) with x1, y1, x2, y2, score, class in each row"
            )
        wide = rows.astype(np.float64)
        found.append(wide[~(wide[:, 4] <= 0)])  # NaN stays, to be found
    return found


def detection_agreement(reference: Sequence[Array], candidate: Sequence[Array]) -> float:
    """F1 of the artifact's detections with the reference's as truth; 1.0 if neither finds anything.

    Args:
        reference: float64 array (detections, 6) per sample, as `rows_of` gives.
        candidate: The same of the artifact.
    """
    matched = total = 0
    for expected, actual in zip(reference, candidate, strict=True):
        here, there = expected[expected[:, 4] >= MIN_SCORE], actual[actual[:, 4] >= MIN_SCORE]
        lower = MIN_SCORE - SCORE_MARGIN
        matched += _matches(here, actual[actual[:, 4] >= lower]) + _matches(there, expected[expected[:, 4] >= lower])
        total += len(here) + len(there)
    return matched / total if total else 1.0


def detection_metric(reference: Sequence[Array], candidate: Sequence[Array], labels: Array) -> MetricResult:
    """F1 of detections with a score of at least MIN_SCORE against labelled objects, at an overlap of MIN_OVERLAP.

    Args:
        reference: float64 array (detections, 6) per sample, as `rows_of` gives.
        candidate: The same of the artifact.
        labels: (samples, objects, 5) as the module says.

    Raises:
        InvalidInputError: The labels have another form, or there is no labelled object.
    """
    if labels.ndim != 3 or labels.shape[2] != LABEL_ROW or len(labels) != len(reference):
        raise InvalidInputError(
            f"labels of shape {list(labels.shape)} for {len(reference)} samples; a detection model has labels of shape"
            " (samples, objects, 5) with class, x1, y1, x2, y2 in each row and class -1 in rows that are padding"
        )
    truth = [_objects(rows) for rows in labels]
    objects = np.array([len(rows) for rows in truth], dtype=np.float64)
    if objects.sum() == 0:
        raise InvalidInputError("F1 is not defined: no sample has a labelled object")
    before, after = _counts(reference, truth), _counts(candidate, truth)

    def drop(chosen: Array) -> Array:
        return _f1(before, objects, chosen) - _f1(after, objects, chosen)

    everything = np.arange(len(truth))[None]
    interval = bootstrap_interval(drop, len(truth))
    return MetricResult(
        f"F1@{MIN_OVERLAP:g}",
        float(_f1(before, objects, everything)[0]),
        float(_f1(after, objects, everything)[0]),
        interval and _with_unseen(interval, len(truth)),
    )


def _with_unseen(interval: Interval, count: int) -> Interval:
    """Counts that differ on no sample resample to no difference: allow for the kind of sample that was not seen."""
    unseen = unseen_share(count)
    return min(interval[0], -unseen), max(interval[1], unseen)


def _objects(labels: Array) -> Array:
    """Labelled objects as detections with a score of 1."""
    kept = labels[labels[:, 0] >= 0].astype(np.float64)
    return np.concatenate([kept[:, 1:5], np.ones((len(kept), 1)), kept[:, :1]], axis=1)


def _counts(found: Sequence[Array], truth: Sequence[Array]) -> Array:
    """float64 array (samples, 2): detections that are right, detections."""
    shown = [rows[rows[:, 4] >= MIN_SCORE] for rows in found]
    return np.array(
        [[_matches(rows, objects), len(rows)] for rows, objects in zip(shown, truth, strict=True)], dtype=np.float64
    ).reshape(-1, 2)


def _f1(counts: Array, objects: Array, chosen: Array) -> Array:
    right, shown = counts[chosen, 0].sum(axis=1), counts[chosen, 1].sum(axis=1)
    with np.errstate(invalid="ignore"):
        f1: Array = 2 * right / (shown + objects[chosen].sum(axis=1))
    return f1


def _matches(rows: Array, others: Array) -> int:
    """How many rows have a partner of their class among the others: greedy, best score first, each partner once."""
    if not len(rows) or not len(others):
        return 0
    overlap = np.where(rows[:, None, 5] == others[None, :, 5], _overlaps(rows, others), 0.0)
    matched = 0
    for index in np.argsort(-rows[:, 4], kind="stable"):
        partner = int(np.argmax(overlap[index]))
        if overlap[index, partner] >= MIN_OVERLAP:
            overlap[:, partner] = 0.0
            matched += 1
    return matched


def _overlaps(left: Array, right: Array) -> Array:
    """Intersection over union of each box of one with each of the other."""
    corner = np.maximum(left[:, None, :2], right[None, :, :2])
    opposite = np.minimum(left[:, None, 2:4], right[None, :, 2:4])
    shared = np.prod(np.clip(opposite - corner, 0, None), axis=2)
    areas = [np.prod(np.clip(boxes[:, 2:4] - boxes[:, :2], 0, None), axis=1) for boxes in (left, right)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    overlaps: Array = np.where(union > 0, shared / np.where(union > 0, union, 1.0), 0.0)
    return overlaps


def padded(outputs: Sequence[Array], rows: int) -> Array:
    """Detections of several samples as one array (samples, rows, 6), for models whose number of detections varies.

    Raises:
        InvalidInputError: As `rows_of`, or a sample has more detections than rows.
    """
    joined = np.zeros((len(outputs), rows, ROW))
    for index, found in enumerate(rows_of(outputs)):
        joined[index, : len(found)] = found
    return joined
