# SPDX-License-Identifier: Apache-2.0
"""How sure a median over a few processes is: its percentile bootstrap interval, seeded. Pure.

Runs inside one process share its memory layout, its thread placement and its luck, so thousands of them say little
about the next process. What counts as one observation here is therefore a process, and there are only a few. With so
few the interval is close to their range, and it says no more than a range can: the range of three observations holds
the true median three times out of four, that of five in fifteen of sixteen.

Source: B. Efron, "Bootstrap Methods: Another Look at the Jackknife", Annals of Statistics 7 (1979); the range's
coverage, 1 - 2 * (1/2)^n, is that of order statistics around a median.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
SEED = 20240229  # any number: equal figures must give equal intervals in every build of the manifest
COVERAGE = 0.95


class Interval(NamedTuple):
    """A median and where it may lie; `low <= median <= high`."""

    low: float
    median: float
    high: float


def median_interval(values: Sequence[float], *, coverage: float = COVERAGE, seed: int = SEED) -> Interval:
    """Median of the values with the percentile bootstrap interval of that median.

    Args:
        values: At least one finite number, each from a process of its own.
        coverage: Share of resampled medians inside the interval.
        seed: Of the resampling; equal input gives equal output.

    Returns:
        For a single value the interval is that value: nothing is known about its spread.
    """
    known = np.asarray(values, dtype=np.float64)
    median = float(np.median(known))
    if len(known) == 1:
        return Interval(median, median, median)
    chosen = np.random.default_rng(seed).integers(0, len(known), (RESAMPLES, len(known)))
    medians = np.median(known[chosen], axis=1)
    tail = 100 * (1 - coverage) / 2
    low, high = (float(value) for value in np.percentile(medians, (tail, 100 - tail)))
    return Interval(min(low, median), median, max(high, median))
