# SPDX-License-Identifier: Apache-2.0
"""Distances between two arrays of one output: whether they can be compared, how far apart they are, what is missed.

It never gates on the elementwise maximum alone, because transformer outliers give false failures, but reports it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dovetail.gate.thresholds import Thresholds
from dovetail.tensor import Array, bf16_to_float32

CAP_DB = 200.0
"""Reported signal-to-noise ratio of identical outputs (JSON has no infinity)."""


@dataclass(frozen=True, slots=True)
class OutputComparison:
    """Figures of one output tensor; errors are fractions of the reference's range."""

    name: str
    cosine: float
    snr_db: float
    mean_error: float
    p999_error: float
    max_error: float


def compare_output(name: str, reference: Array, candidate: Array) -> OutputComparison:
    """Figures of one output, computed in float64; both arrays have equal shape and are finite."""
    expected = np.asarray(reference, dtype=np.float64).ravel()
    actual = np.asarray(candidate, dtype=np.float64).ravel()
    if expected.size == 0:
        return OutputComparison(name, 1.0, CAP_DB, 0.0, 0.0, 0.0)
    error = np.abs(expected - actual)
    span = float(expected.max() - expected.min()) or float(np.abs(expected).max()) or 1.0
    return OutputComparison(
        name=name,
        cosine=_cosine(expected, actual),
        snr_db=_snr_db(expected, error),
        mean_error=float(error.mean()) / span,
        p999_error=float(np.quantile(error, 0.999)) / span,
        max_error=float(error.max()) / span,
    )


def structural_problem(name: str, expected: Array, actual: Array | None) -> str:
    """Why two arrays cannot be compared, in one line; "" if they can."""
    if actual is None:
        return f"output {name} is missing"
    if expected.shape != actual.shape:
        return f"output {name}: shape {list(actual.shape)}, the reference has {list(expected.shape)}"
    if expected.dtype != actual.dtype:
        return f"output {name}: dtype {actual.dtype}, the reference has {expected.dtype}"
    if expected.dtype.kind != "f":
        return ""
    if not np.isfinite(expected).all():
        return f"output {name}: the reference itself has NaN or infinite values on these samples; nothing can be proven"
    bad = int(np.size(actual) - np.count_nonzero(np.isfinite(actual)))
    return f"output {name}: {bad} of {actual.size} values are NaN or infinite" if bad else ""


def missed(figures: OutputComparison, limits: Thresholds) -> list[str]:
    """One line for each threshold that an output missed, with both numbers."""
    checks: Sequence[tuple[str, float, float, bool]] = (
        ("cosine", figures.cosine, limits.min_cosine, figures.cosine >= limits.min_cosine),
        ("SNR in dB", figures.snr_db, limits.min_snr_db, figures.snr_db >= limits.min_snr_db),
        ("mean error / range", figures.mean_error, limits.max_mean_error, figures.mean_error <= limits.max_mean_error),
        ("p99.9 error / range", figures.p999_error, limits.max_p999_error, figures.p999_error <= limits.max_p999_error),
    )
    return [
        f"output {figures.name}: {what} is {got:.6g}, allowed is {limit:.6g}"
        for what, got, limit, ok in checks
        if not ok
    ]


def disagreement(name: str, expected: Array, actual: Array, limits: Thresholds) -> list[str]:
    """The same for an output that is no float: class ids, masks, texts."""
    if expected.size == 0:
        return []
    share = float(np.mean(expected == actual))
    if share >= limits.min_top1_agreement:
        return []
    return [f"output {name}: {share:.2%} of the elements are equal, allowed is {limits.min_top1_agreement:.2%}"]


def number_values(outputs: Mapping[str, Array], datatypes: Mapping[str, str]) -> dict[str, Array]:
    """The outputs with BF16 bit patterns turned into the numbers they stand for."""
    return {
        name: bf16_to_float32(array) if datatypes.get(name) == "BF16" and array.dtype == np.uint16 else array
        for name, array in outputs.items()
    }


def _cosine(expected: Array, actual: Array) -> float:
    norms = float(np.linalg.norm(expected) * np.linalg.norm(actual))
    if norms == 0.0:
        return 1.0 if np.array_equal(expected, actual) else 0.0
    return min(1.0, float(np.dot(expected, actual)) / norms)


def _snr_db(expected: Array, error: Array) -> float:
    noise = float(np.sum(error**2))
    signal = float(np.sum(expected**2))
    if noise == 0.0:
        return CAP_DB
    if signal == 0.0:
        return -CAP_DB
    return max(-CAP_DB, min(CAP_DB, 10 * math.log10(signal / noise)))
