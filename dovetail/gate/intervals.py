# SPDX-License-Identifier: Apache-2.0
"""Confidence intervals: what so many samples can say about a share, about a paired difference, about any drop.

They are two-sided at 95 %. Shares and paired shares have score intervals, which do not collapse to a point when no
sample differs, so that 50 equal samples are not taken for a proof. All other metrics have a seeded bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from dovetail.tensor import Array

CONFIDENCE = 0.95
Z = 1.959963984540054
"""97.5 % quantile of the normal distribution."""

RESAMPLES = 1000
"""Ours: the ends of a 95 % interval then stand on 25 resamples each, and 1000 samples take well under a second."""

MIN_BOOTSTRAP_SAMPLES = 20
"""Ours: with fewer, resampling says little about the tails of what was not seen; then there is no interval."""

Interval = tuple[float, float]


def share_interval(hits: int, count: int) -> Interval:
    """Wilson's score interval of a share of `count` independent samples.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    share, square = hits / count, Z * Z
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = Z / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_interval(lost: int, gained: int, count: int) -> Interval:
    """Tango's score interval of the difference of two shares that were seen on the same samples.

    With no sample that differs it is -z²/(n+z²) to z²/(n+z²): 50 samples leave 7.1 points open.

    Args:
        lost: Samples that the first got right and the second wrong.
        gained: The other way round.
        count: All samples, 1 or more.

    Returns:
        Ends of the interval of (share of the first - share of the second).

    Source: T. Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample
        design, Statistics in Medicine 17 (1998), 891-908, equations for the score statistic and its q21.
    """
    point = (lost - gained) / count
    low = _root(lambda delta: _tango(lost, gained, count, delta) - Z, -1.0, point)
    high = _root(lambda delta: _tango(lost, gained, count, delta) + Z, point, 1.0)
    return low, high


def bootstrap_interval(drop: Callable[[Array], Array], count: int) -> Interval | None:
    """Percentile bootstrap over samples, widened for small sets.

    Args:
        drop: Takes int array (resamples, count) of sample indexes, gives float array (resamples,) of the drop on them;
            NaN where it is not defined.
        count: Samples.

    Returns:
        The ends; None with fewer than MIN_BOOTSTRAP_SAMPLES, or if the drop is not defined on most resamples.

    Source: T. C. Hesterberg, What teachers should know about the bootstrap, The American Statistician 69 (2015): the
        percentile interval of n samples is too narrow by about the factor sqrt((n-1)/n), and by normal in place of t.
    """
    if count < MIN_BOOTSTRAP_SAMPLES:
        return None
    random = np.random.default_rng(1998)
    values = drop(random.integers(0, count, (RESAMPLES, count)))
    values = values[np.isfinite(values)]
    if len(values) < RESAMPLES // 2:
        return None
    low, middle, high = (float(value) for value in np.quantile(values, (0.025, 0.5, 0.975)))
    wider = math.sqrt(count / (count - 1)) * (1 + (Z * Z + 1) / (4 * (count - 1)))  # t quantile, first order
    return middle - (middle - low) * wider, middle + (high - middle) * wider


def unseen_share(count: int) -> float:
    """Largest share of samples of a kind of which none was seen among `count`, by the score bound."""
    return Z * Z / (count + Z * Z)


def _tango(lost: int, gained: int, count: int, delta: float) -> float:
    """Score statistic of the hypothesis that the difference is delta; falls as delta grows."""
    a = 2.0 * count
    b = -lost - gained + (2 * count - lost + gained) * delta
    c = -gained * delta * (1 - delta)
    q21 = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = count * (2 * q21 + delta * (1 - delta))
    distance = lost - gained - count * delta
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _root(function: Callable[[float], float], left: float, right: float) -> float:
    """Where a falling function is zero, by bisection; an end if it has one sign all along."""
    if function(left) <= 0:
        return left
    if function(right) >= 0:
        return right
    for _ in range(60):
        middle = (left + right) / 2
        left, right = (middle, right) if function(middle) > 0 else (left, middle)
    return (left + right) / 2
