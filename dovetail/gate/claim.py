# SPDX-License-Identifier: Apache-2.0
"""What may be said of a drop of the task metric, and when it fails the gate.

Two things are apart on purpose. The *point estimate* decides: a drop seen on the samples that is larger than
`max_metric_drop` fails, however few they are. The *claim* comes from the interval alone: "no measurable drop" is said
only if the samples exclude one of CLAIM_RESOLUTION. Whoever wants the interval to decide as well sets the tolerance
`max_metric_drop_upper`: then too few samples fail the gate.
"""

from __future__ import annotations

from dovetail.gate.metrics import MetricResult
from dovetail.gate.thresholds import Thresholds

CLAIM_RESOLUTION = 0.01
"""Largest drop that may hide behind "no measurable drop": NNCF's default for the largest drop allowed."""

_ROUNDING = 1e-12


def claim_text(metric: MetricResult, samples: int) -> str:
    """One line; drops in points (hundredths of the metric) at 95 % confidence."""
    drop = metric.reference - metric.candidate
    if metric.interval is None:
        return f"drop not resolved: {samples} samples are too few for an interval"
    low, high = metric.interval
    if low > 0:
        return f"drop of {_points(drop)} pt ({_points(low)} to {_points(high)} pt at 95 %)"
    if high < 0:
        return f"gain of {_points(-drop)} pt ({_points(-high)} to {_points(-low)} pt at 95 %)"
    if high <= CLAIM_RESOLUTION:
        return f"no measurable drop (≤ {_points(high)} pt at 95 %)"
    return f"drop not resolved: {samples} samples resolve no less than {_points(high)} pt at 95 %"


def metric_failures(metric: MetricResult, limits: Thresholds) -> list[str]:
    """One line for each limit of the drop that was missed."""
    failures = []
    if metric.reference - metric.candidate > limits.max_metric_drop + _ROUNDING:
        failures.append(
            f"{metric.name} fell from {metric.reference:.2%} to {metric.candidate:.2%},"
            f" allowed is a drop of {limits.max_metric_drop:.2%}"
        )
    upper = limits.max_metric_drop_upper
    if upper is None:
        return failures
    if metric.interval is None:
        failures.append(
            f"{metric.name}: the samples are too few for an interval, and the policy allows a drop of at most"
            f" {upper:.2%} at its upper end; push more validation samples"
        )
    elif metric.interval[1] > upper + _ROUNDING:
        failures.append(
            f"{metric.name} may have fallen by {metric.interval[1]:.2%} (upper end at 95 %), allowed is {upper:.2%};"
            " more validation samples narrow the interval"
        )
    return failures


def _points(fraction: float) -> str:
    return f"{100 * fraction:.1f}" if abs(fraction) >= 0.001 else f"{100 * fraction:.2g}"
