# SPDX-License-Identifier: Apache-2.0
"""How long a run takes for how many rows, learned from the runs of the model that serves.

A run of n rows takes about a*n + b: b is paid once, so sharing it is what batching gains, and a is what each row costs
in any batch. Sizes are taken together up to the next power of two, and of each such class the run counts that is in the
middle of the last ones, because on a machine that does other things too a mean says more about those. What is known
changes with the machine's load, so classes that have not been run for long are forgotten. Requests of different shapes
cost differently: there is a curve for each of the most recent layouts.

It has no lock of its own: whoever uses it holds its owner's.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable

LAST_RUNS = 16
"""Runs of a class that count; half of them may be disturbed without any effect."""

ENOUGH_RUNS = 2
"""Runs before a class counts at all: of two the faster one does, as the first often allocates or tunes something."""

FORGET_AFTER = 256
"""Runs of other classes after which a class is forgotten."""

MAX_CURVES = 32
"""Layouts whose times are kept."""

REFIT_EVERY = 8
"""Runs between two fits, which cost some ten microseconds."""


class Curve:
    """Times of one layout."""

    def __init__(self) -> None:
        self._times: dict[int, deque[tuple[float, int]]] = {}
        self._seen: dict[int, int] = {}
        self._runs = 0
        self._a = 0.0
        self._b = 0.0
        self._sizes = 0
        self._least = 0
        self._most = 0
        self._best_row_s = 0.0

    @property
    def known(self) -> bool:
        """True once at least one class was run often enough."""
        return self._sizes > 0

    @property
    def shaped(self) -> bool:
        """True once two classes were, so that what a row costs and what a run costs are told apart."""
        return self._sizes > 1

    @property
    def least_rows(self) -> int:
        """Fewest rows that were run often enough; 0 while nothing is known."""
        return self._least

    def careful_rows(self, run_s: float) -> int:
        """Rows for the next run while too little is known to tell what a larger one would cost.

        As many as take `run_s` if each costs what the best so far did, but at least twice what is known already.
        """
        fit = int(run_s / self._best_row_s) if self._best_row_s else 0
        return max(1, 2 * self._most, fit)

    @property
    def runs(self) -> int:
        """Runs so far."""
        return self._runs

    def add(self, rows: int, seconds: float) -> None:
        """Add a run."""
        self._runs += 1
        size = rows.bit_length()
        times = self._times.setdefault(size, deque(maxlen=LAST_RUNS))
        times.append((seconds / rows, rows))
        self._seen[size] = self._runs
        self._best_row_s = min(self._best_row_s or seconds / rows, seconds / rows)
        if self._runs % REFIT_EVERY == 0 or len(times) == ENOUGH_RUNS:
            self._fit()

    def seconds(self, rows: int) -> float:
        """Time of a run of so many rows; 0 while nothing is known."""
        return self._a * rows + self._b

    def row_seconds(self, rows: int) -> float:
        """What one row costs in a run of so many."""
        return self._a + self._b / rows

    def enough_rows(self, most: int, share: float, run_s: float = 0.0) -> int:
        """Fewest rows whose run serves at least this share of the rows per second of a run of `most` rows.

        Args:
            most: Rows of the largest run.
            share: Above 0, below 1.
            run_s: What each run costs others, beside its own time.
        """
        fixed_s = self._b + run_s
        best = self._a + fixed_s / most
        if not self.shaped or best <= 0:
            return most
        # a + b/n <= best/share, solved for n
        slack = best / share - self._a
        return most if slack <= 0 else min(most, max(1, -int(-fixed_s // slack)))

    def _fit(self) -> None:
        stale = [size for size, seen in self._seen.items() if self._runs - seen > FORGET_AFTER]
        for size in stale:
            del self._times[size], self._seen[size]
        points = []
        for times in self._times.values():
            if len(times) >= ENOUGH_RUNS:
                each_s, rows = sorted(times)[(len(times) - 1) // 2]
                points.append((rows, each_s * rows, len(times)))
        self._sizes = len(points)
        self._least = min((rows for rows, _, _ in points), default=0)
        self._most = max((rows for rows, _, _ in points), default=0)
        if points:
            self._a, self._b = _line(points)


class RunTimes:
    """Times of the most recent layouts of a model."""

    def __init__(self) -> None:
        self._curves: OrderedDict[Hashable, Curve] = OrderedDict()

    def add(self, layout: Hashable, rows: int, seconds: float) -> None:
        """Add a run."""
        curve = self._curves.get(layout)
        if curve is None:
            if len(self._curves) >= MAX_CURVES:
                self._curves.popitem(last=False)
            curve = self._curves[layout] = Curve()
        else:
            self._curves.move_to_end(layout)
        curve.add(rows, seconds)

    def of(self, layout: Hashable) -> Curve | None:
        """Times of a layout; None if it was never run, or not for long."""
        return self._curves.get(layout)

    def cheapest_row_s(self, rows: int) -> float:
        """Least cost of one row of any known layout in a run of so many; 0 while nothing is known."""
        return min((curve.row_seconds(rows) for curve in self._curves.values() if curve.known), default=0.0)


def _line(points: list[tuple[int, float, int]]) -> tuple[float, float]:
    """Slope and height, both at least 0, of the line that fits best where runs were many.

    Args:
        points: Rows, seconds, and how many runs stand behind them.
    """
    weight = sum(runs for _, _, runs in points)
    mean_rows = sum(rows * runs for rows, _, runs in points) / weight
    mean_s = sum(seconds * runs for _, seconds, runs in points) / weight
    spread = sum(runs * (rows - mean_rows) ** 2 for rows, _, runs in points)
    if spread == 0:
        return mean_s / mean_rows, 0.0
    slope = sum(runs * (rows - mean_rows) * (seconds - mean_s) for rows, seconds, runs in points) / spread
    height = mean_s - slope * mean_rows
    if slope <= 0:
        return 0.0, mean_s
    if height < 0:
        return mean_s / mean_rows, 0.0
    return slope, height
