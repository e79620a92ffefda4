# SPDX-License-Identifier: Apache-2.0
"""The best artifact and settings for each objective among what was measured on one class. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dovetail.benchmark import BenchmarkRecord
from dovetail.cli.report.data import BASELINE_RECIPE, Best, Entry, Run
from dovetail.offer import Objective
from dovetail.ranking import equal

_MORE_IS_BETTER = frozenset({Objective.THROUGHPUT})


def best_of(entries: Sequence[Entry]) -> tuple[Best, ...]:
    """One answer for each objective for which there are figures."""
    found = (_best(entries, objective) for objective in Objective)
    return tuple(item for item in found if item is not None)


def best_run(entry: Entry, objective: Objective) -> Run | None:
    """The run that counts for an objective; None if none has its figure.

    For latency only runs that ask one after the other count if there are any: with several requests at once a figure
    holds the waiting of each for the others.
    """
    alone = [run for run in entry.runs if run.record.scenario == "single_stream" and run.record.streams <= 1]
    runs = alone if objective is Objective.LATENCY and alone else entry.runs
    known = [run for run in runs if value_of(entry, run.record, objective) > 0]
    return min(known, key=lambda run: _cost(entry, run, objective), default=None)


def value_of(entry: Entry, record: BenchmarkRecord, objective: Objective) -> float:
    """The figure of an objective: ms, rows per second, or bytes; 0 if it is unknown."""
    figures = {
        Objective.LATENCY: record.p50_ms,
        Objective.THROUGHPUT: record.throughput,
        Objective.MEMORY: float(record.peak_rss_bytes),
        Objective.SIZE: float(entry.size_bytes),
    }
    return figures[objective]


def _best(entries: Iterable[Entry], objective: Objective) -> Best | None:
    rows = [(entry, run) for entry in entries if (run := best_run(entry, objective)) is not None]
    if not rows:
        return None
    entry, run = min(rows, key=lambda row: (_cost(row[0], row[1], objective), row[1].record.p50_ms, row[0].recipe))
    value = value_of(entry, run.record, objective)
    baseline = next((row for row in rows if row[0].recipe == BASELINE_RECIPE), None)
    return Best(
        objective=objective,
        entry=entry,
        run=run,
        value=value,
        ratio=None if baseline is None else _ratio(value, value_of(*_figures(baseline), objective), objective),
        equals=tuple(
            other.recipe
            for other, its in rows
            if other is not entry and _same(value, value_of(other, its.record, objective), run, its, objective)
        ),
    )


def _figures(row: tuple[Entry, Run]) -> tuple[Entry, BenchmarkRecord]:
    return row[0], row[1].record


def _ratio(value: float, baseline: float, objective: Objective) -> float:
    return value / baseline if objective in _MORE_IS_BETTER else baseline / value


def _same(value: float, other: float, run: Run, its: Run, objective: Objective) -> bool:
    """True if nothing says that one is better: overlapping intervals, or the same number where there are none."""
    if objective is Objective.SIZE:
        return value == other
    return equal(run.record, its.record, objective)


def _cost(entry: Entry, run: Run, objective: Objective) -> float:
    value = value_of(entry, run.record, objective)
    return -value if objective in _MORE_IS_BETTER else value
