# SPDX-License-Identifier: Apache-2.0
"""The Pareto front: candidates that nothing beats in one respect without losing in another. Pure.

One front is for one model on one hardware class; absolute figures of two classes never meet. The objective says which
respects count, so that the front for latency is not crowded by settings that only a batch job would use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dovetail.benchmark import BenchmarkRecord
from dovetail.offer import Objective

AXES: dict[Objective | None, tuple[str, ...]] = {
    None: ("p99_ms", "throughput", "memory_bytes", "accuracy"),
    Objective.LATENCY: ("p99_ms", "memory_bytes", "accuracy"),
    Objective.THROUGHPUT: ("throughput", "memory_bytes", "accuracy"),
    Objective.MEMORY: ("memory_bytes", "p99_ms", "accuracy"),
    Objective.SIZE: ("size_bytes", "p99_ms", "accuracy"),
}
"""What is traded off for each objective; None for all respects at once."""

_MORE_IS_BETTER = frozenset({"throughput", "accuracy"})


@dataclass(frozen=True, slots=True)
class Point:
    """One candidate: an artifact with settings.

    Attributes:
        key: Names the candidate to whoever asks; not compared.
        p99_ms: 99th percentile of the latency; 0 is unknown, as for the others.
        throughput: Rows per second.
        memory_bytes: Peak memory.
        size_bytes: Of the files.
        accuracy: Task metric, a fraction; None is unknown.
    """

    key: str
    p99_ms: float = 0.0
    throughput: float = 0.0
    memory_bytes: float = 0.0
    size_bytes: float = 0.0
    accuracy: float | None = None

    @staticmethod
    def of(key: str, record: BenchmarkRecord, *, size_bytes: int = 0, accuracy: float | None = None) -> Point:
        """The point of a benchmark record; what a record does not hold is given beside it."""
        return Point(key, record.p99_ms, record.throughput, record.peak_rss_bytes, size_bytes, accuracy)


def front(points: Sequence[Point], objective: Objective | None = None) -> tuple[Point, ...]:
    """The points that no other dominates, best in the objective's first axis first.

    A point dominates another if it is nowhere worse and somewhere better. What is unknown counts as worst: a figure
    that nobody measured is no argument. Points that are equal everywhere are all in.

    Laws: the front of a front is itself; for each axis the front holds a point that is best in it; each point that is
    left out is dominated by one in the front.
    """
    costs = [_costs(point, AXES[objective]) for point in points]
    kept = [index for index, cost in enumerate(costs) if not any(dominates(other, cost) for other in costs)]
    return tuple(points[index] for index in sorted(kept, key=lambda index: (costs[index], points[index].key)))


def dominates(left: Sequence[float], right: Sequence[float]) -> bool:
    """True if the left costs are nowhere higher and somewhere lower."""
    return all(a <= b for a, b in zip(left, right, strict=True)) and tuple(left) != tuple(right)


def _costs(point: Point, axes: Sequence[str]) -> tuple[float, ...]:
    found = []
    for axis in axes:
        value = getattr(point, axis)
        known = value is not None and math.isfinite(value) and (value > 0 or axis == "accuracy")
        found.append(math.inf if not known else -value if axis in _MORE_IS_BETTER else float(value))
    return tuple(found)
