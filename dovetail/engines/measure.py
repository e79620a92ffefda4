# SPDX-License-Identifier: Apache-2.0
"""Measures how fast a loaded artifact is here, always beside the baseline in the same run.

What lives here: loading with its cost, and the figures that become of timings. How requests come and when a series is
steady is `scenarios`; the result is `dovetail.benchmark`'s value. Short by design (seconds, not MLPerf's ten minutes):
the record says how many samples stand behind the figures and whether they were steady, so that a reader can tell a
quick look from a proof.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from dovetail.benchmark import BenchmarkRecord
from dovetail.clock import Clock, SystemClock
from dovetail.engines.base import Session
from dovetail.engines.scenarios import (
    MAX_WINDOW_RUNS,
    MIN_WINDOW_RUNS,
    MIN_WINDOWS,
    Feeds,
    Outcome,
    RunOnce,
    Series,
    process_cpu_s,
    run_in_turns,
    timed,
)

__all__ = [
    "MAX_WINDOW_RUNS",
    "MIN_WINDOWS",
    "MIN_WINDOW_RUNS",
    "Loaded",
    "RunOnce",
    "load_measured",
    "measure",
    "measure_runs",
    "record_of",
    "timed",
]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A session with what loading it cost.

    Attributes:
        session: The session.
        load_ms: Time from file to ready session.
        peak_rss_bytes: Peak resident memory during load and first runs above the state before; 0 if unknown.
    """

    session: Session
    load_ms: float
    peak_rss_bytes: int


def load_measured(load: Callable[[], Session], feeds: Sequence[Feeds], *, clock: Clock | None = None) -> Loaded:
    """Load a session, run it a few times, and say how long loading took and how much memory it needs.

    Freed heap is given back first and the kernel's peak counter is reset, so that what the process did before does not
    count. Not thread-safe: the figures belong to the whole process.

    Raises:
        EngineError: Loading or running failed.
    """
    clock = clock or SystemClock()
    before = _reset_peak()
    started = clock.monotonic_s()
    session = load()
    load_ms = (clock.monotonic_s() - started) * 1000
    for _, feed in zip(range(3), cycle(feeds), strict=False):
        session.run(feed)
    peak = _status_bytes("VmHWM")
    return Loaded(session, load_ms, max(0, peak - before) if before and peak else 0)


def measure(
    loaded: Loaded,
    feeds: Sequence[Feeds],
    *,
    hardware_class: str,
    batch: int,
    threads: int,
    baseline: Session | None = None,
    budget_s: float = 2.0,
    reported_by: str = "build",
    clock: Clock | None = None,
) -> BenchmarkRecord:
    """Time a session, its windows interleaved with the baseline's so that both see the same machine. Blocks.

    Args:
        loaded: Session from `load_measured`.
        feeds: At least one input; used in turn.
        hardware_class: Key of this machine's class.
        batch: Rows in each feed.
        threads: Threads that the engine was given.
        baseline: The unoptimised fp32 model, or None.
        budget_s: Time for warm-up and windows together; a slow model may take longer, for three windows of five runs.
        reported_by: "build" or the node id.
        clock: Time source.

    Raises:
        EngineError: A run failed.
    """
    clock = clock or SystemClock()
    return measure_runs(
        timed(loaded.session, feeds, clock),
        hardware_class=hardware_class,
        batch=batch,
        threads=threads,
        baseline=None if baseline is None else timed(baseline, feeds, clock),
        load_ms=loaded.load_ms,
        peak_rss_bytes=loaded.peak_rss_bytes,
        budget_s=budget_s,
        reported_by=reported_by,
        clock=clock,
        cpu_s=process_cpu_s,
    )


def measure_runs(
    run_once: RunOnce,
    *,
    hardware_class: str,
    batch: int,
    threads: int,
    clock: Clock,
    baseline: RunOnce | None = None,
    load_ms: float = 0.0,
    peak_rss_bytes: int = 0,
    budget_s: float = 2.0,
    reported_by: str = "build",
    cpu_s: Callable[[], float] | None = None,
) -> BenchmarkRecord:
    """`measure` for whoever runs and times the session in another way, such as between real requests. Blocks.

    Args:
        run_once: The next run; what it raises ends the measurement.
        hardware_class: Key of this machine's class.
        batch: Rows in each run.
        threads: Threads that the engine was given.
        clock: What the budget is measured on; the seconds of a run must pass on it too.
        baseline: Runs of the unoptimised fp32 model, or None.
        load_ms: As in the record.
        peak_rss_bytes: As in the record.
        budget_s: As in `measure`.
        reported_by: As in the record.
        cpu_s: CPU seconds of the process so far; None in a process that does other things meanwhile.

    Raises:
        EngineError: A run failed.
    """
    series = [_series(run_once, clock, cpu_s)]
    if baseline is not None:
        series.insert(0, _series(baseline, clock, None))
    outcomes = run_in_turns(series, budget_s, clock)
    return record_of(
        outcomes[-1],
        hardware_class=hardware_class,
        batch=batch,
        threads=threads,
        clock=clock,
        baseline=None if baseline is None else outcomes[0],
        load_ms=load_ms,
        peak_rss_bytes=peak_rss_bytes,
        reported_by=reported_by,
    )


def record_of(
    outcome: Outcome,
    *,
    hardware_class: str,
    batch: int,
    threads: int,
    clock: Clock,
    baseline: Outcome | None = None,
    baseline_rows: int = 0,
    load_ms: float = 0.0,
    peak_rss_bytes: int = 0,
    reported_by: str = "build",
    scenario: str = "single_stream",
    streams: int = 1,
    rows_per_query: int = 0,
) -> BenchmarkRecord:
    """The record of one outcome of `run_in_turns`.

    Args:
        outcome: Of the artifact.
        hardware_class: Key of this machine's class.
        batch: Rows in each run.
        threads: Threads that the engine was given.
        clock: For the time stamp.
        baseline: Outcome of the unoptimised fp32 model from the same windows, or None.
        baseline_rows: Rows in each run of the baseline; 0: as many as the artifact's. With fewer, its median is told
            for as many rows as the artifact's, one run after another.
        load_ms: As in the record.
        peak_rss_bytes: As in the record.
        reported_by: As in the record.
        scenario: As in the record.
        streams: As in the record.
        rows_per_query: Rows that one query brings; 0: one run's.
    """
    rows = rows_per_query or batch
    scale = rows / (baseline_rows or rows)
    p50, p90, p95, p99 = (outcome.percentile_ms(percent) for percent in (50, 90, 95, 99))
    return BenchmarkRecord(
        hardware_class=hardware_class,
        batch=batch,
        threads=threads,
        samples=len(outcome.latencies_s),
        windows=outcome.windows,
        steady=outcome.steady and (baseline is None or baseline.steady),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        throughput=rows * outcome.queries_per_s,
        load_ms=load_ms,
        peak_rss_bytes=peak_rss_bytes,
        baseline_p50_ms=0.0 if baseline is None else baseline.percentile_ms(50) * scale,
        measured_at_ms=clock.wall_ms(),
        reported_by=reported_by,
        scenario=scenario,
        streams=streams,
        p90_ms=p90,
        cpu_ms=outcome.cpu_ms / rows,
    )


def _series(run_once: RunOnce, clock: Clock, cpu_s: Callable[[], float] | None) -> Series:
    return Series([run_once], clock, cpu_s)


def _reset_peak() -> int:
    """Give freed memory back, reset the kernel's peak counter, and return the resident bytes; 0 if it cannot be done.

    Source: proc(5), /proc/pid/clear_refs: writing 5 resets VmHWM to the current value (Linux 4.0 and later).
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return 0
    return _status_bytes("VmRSS")


def _status_bytes(field_name: str) -> int:
    """A memory field of /proc/self/status in bytes; 0 if it cannot be read."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(field_name + ":"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return 0
    return 0
