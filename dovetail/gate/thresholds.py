# SPDX-License-Identifier: Apache-2.0
"""What an artifact must reach: the defaults for each precision, and what a policy puts in their place.

Source of the defaults: our proposal, anchored on Polygraphy (cosine 0.997, SNR 20 dB), NVIDIA's migration advice (5e-3
and 1e-2 with the mean statistic) and NNCF's accuracy control (maximum drop 0.01).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType

from dovetail.accuracy import AccuracyPolicy
from dovetail.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What an artifact must reach on every floating-point output.

    Attributes:
        min_cosine: Cosine similarity over all elements of all samples.
        min_snr_db: 10 log10(signal power / error power).
        max_mean_error: Mean absolute error, as a fraction of the reference's range.
        max_p999_error: 99.9th percentile of the absolute error, as a fraction of the reference's range.
        min_top1_agreement: Fraction of decisions that are the same: of samples whose largest element is (classification
            policy), of detections that are found again (detection policy), of elements of outputs that are not floats.
        max_metric_drop: Loss of the task metric on labelled samples, as a fraction (0.01 is one percentage point).
        max_metric_drop_upper: If given, what the upper end of the drop's confidence interval may be: with it too few
            samples fail the gate.
        min_row_cosine_mean: Mean over the samples of the cosine similarity of each embedding (embedding policy);
            None: `min_cosine`.
        min_row_cosine_p1: 1st percentile of the same; None: three times as far from 1 as the mean may be (ours).
    """

    min_cosine: float
    min_snr_db: float
    max_mean_error: float
    max_p999_error: float
    min_top1_agreement: float
    max_metric_drop: float
    max_metric_drop_upper: float | None = None
    min_row_cosine_mean: float | None = None
    min_row_cosine_p1: float | None = None

    @property
    def row_cosine_mean(self) -> float:
        """`min_row_cosine_mean` with its default."""
        return self.min_cosine if self.min_row_cosine_mean is None else self.min_row_cosine_mean

    @property
    def row_cosine_p1(self) -> float:
        """`min_row_cosine_p1` with its default."""
        return 1 - 3 * (1 - self.row_cosine_mean) if self.min_row_cosine_p1 is None else self.min_row_cosine_p1


DEFAULT_THRESHOLDS: Mapping[str, Thresholds] = {
    "fp32": Thresholds(0.999999, 80, 1e-6, 1e-4, 0.999, 0.0),
    "tf32": Thresholds(0.9995, 35, 2e-3, 1e-2, 0.995, 0.001),
    "bf16": Thresholds(0.9995, 35, 2e-3, 1e-2, 0.995, 0.001),
    "fp16": Thresholds(0.9995, 35, 2e-3, 1e-2, 0.995, 0.001),
    "fp8": Thresholds(0.99, 20, 1e-2, 5e-2, 0.99, 0.01),  # as int8: three bits of mantissa; unverified
    "int8": Thresholds(0.99, 20, 1e-2, 5e-2, 0.99, 0.01),
    "int4": Thresholds(0.98, 17, 2e-2, 1e-1, 0.98, 0.02),
}

ALLOWED: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "min_cosine": (-1.0, 1.0),
        "min_snr_db": (-200.0, 200.0),
        "max_mean_error": (0.0, math.inf),
        "max_p999_error": (0.0, math.inf),
        "min_top1_agreement": (0.0, 1.0),
        "max_metric_drop": (0.0, 1.0),
        "max_metric_drop_upper": (0.0, 1.0),
        "min_row_cosine_mean": (-1.0, 1.0),
        "min_row_cosine_p1": (-1.0, 1.0),
    }
)
"""Threshold -> least and largest value that an artifact could meet at all and miss at all."""


def default_thresholds(precision: str) -> Thresholds:
    """Thresholds of a precision.

    Raises:
        InvalidInputError: The table has no such precision.
    """
    try:
        return DEFAULT_THRESHOLDS[precision]
    except KeyError:
        raise InvalidInputError(
            f"no gate thresholds for precision {precision!r}; expected one of {', '.join(DEFAULT_THRESHOLDS)}"
        ) from None


def policy_thresholds(precision: str, policy: AccuracyPolicy) -> Thresholds:
    """Thresholds of a precision with the policy's own values in place of the defaults.

    Raises:
        InvalidInputError: The precision, or a tolerance of the policy, is not known or not possible.
    """
    check_tolerances(policy)
    drop = {} if policy.max_metric_drop is None else {"max_metric_drop": policy.max_metric_drop}
    return replace(default_thresholds(precision), **{**drop, **policy.tolerances})


def threshold_changes(precision: str, limits: Thresholds) -> dict[str, float]:
    """Threshold -> value, for those that are not the precision's default; what goldens carry.

    `policy_thresholds(p, AccuracyPolicy(tolerances=threshold_changes(p, limits))) == limits`.
    """
    default = asdict(default_thresholds(precision))
    return {name: value for name, value in asdict(limits).items() if value is not None and value != default[name]}


def check_tolerances(policy: AccuracyPolicy) -> None:
    """Make sure that every tolerance of a policy can be judged by.

    Raises:
        InvalidInputError: A name is not a threshold's, a value is no number or out of its range, or the largest drop is
            given twice. The text names it.
    """
    known = [field.name for field in fields(Thresholds)]
    for name, value in policy.tolerances.items():
        if name not in known:
            raise InvalidInputError(
                f"accuracy policy: tolerance {name[:80]!r} is not known; expected one of {', '.join(known)}"
            )
        _check_value(f"tolerance {name}", value, *ALLOWED[name])
    if policy.max_metric_drop is not None:
        _check_value("max_metric_drop, a fraction such as 0.01,", policy.max_metric_drop, *ALLOWED["max_metric_drop"])
        if "max_metric_drop" in policy.tolerances:
            raise InvalidInputError("accuracy policy: max_metric_drop is given twice; leave it out of the tolerances")


def _check_value(what: str, value: float, least: float, largest: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidInputError(f"accuracy policy: {what} is {value!r}; expected a finite number")
    if not least <= value <= largest:
        bounds = "0 or larger" if largest == math.inf else f"{least:g} to {largest:g}"
        raise InvalidInputError(f"accuracy policy: {what} is {value:g}; expected {bounds}")
