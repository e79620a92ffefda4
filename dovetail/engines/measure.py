# SPDX-License-Identifier: Apache-2.0
"""Measures how fast a loaded artifact is here, always beside the baseline in the same run.

What lives here: warm-up, windows, the stability rule and the figures. The result is `dovetail.benchmark`'s value. Short
by design (seconds, not MLPerf's ten minutes): the record says how many samples stand behind the figures and whether
they were steady, so that a reader can tell a quick look from a proof.

Source of the rules: a warm-up that lasts until the mean of ten inferences is within 5 % of the ten before it, and
windows that count when the last three agree within 10 % (NVIDIA Model Navigator's stability rule, there on means; here
on medians, because one descheduling on a shared machine moves a mean and not a median).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import numpy as np

from dovetail.benchmark import BenchmarkRecord
from dovetail.clock import Clock, SystemClock
from dovetail.engines.base import Session
from dovetail.tensor import Array

WARM_UP_GROUP = 10
WARM_UP_BOUND = 0.05
WINDOW_BOUND = 0.10
MIN_WINDOWS = 3
MAX_WINDOWS = 24
MIN_WINDOW_RUNS = 5
MAX_WINDOW_RUNS = 2000

Feeds = Mapping[str, Array]
RunOnce = Callable[[], float]
"""Runs a session once with its next feed and returns the seconds that it took."""


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


@dataclass(slots=True)
class _Series:
    """Timings of one session, in seconds."""

    run_once: RunOnce
    clock: Clock
    windows: list[list[float]] = field(default_factory=list)

    def run_window(self, runs: int, deadline: float) -> None:
        """A window of that many runs, cut short at the deadline but not below MIN_WINDOW_RUNS."""
        window: list[float] = []
        while len(window) < runs and (len(window) < MIN_WINDOW_RUNS or self.clock.monotonic_s() < deadline):
            window.append(self.run_once())
        self.windows.append(window)

    def samples(self) -> list[float]:
        return [sample for window in self.windows for sample in window]

    def steady(self) -> bool:
        """True if the medians of the last three windows lie within the bound."""
        medians = [float(np.median(window)) for window in self.windows[-MIN_WINDOWS:]]
        return len(medians) == MIN_WINDOWS and max(medians) <= min(medians) * (1 + WINDOW_BOUND)


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
    )


def timed(session: Session, feeds: Sequence[Feeds], clock: Clock) -> RunOnce:
    """Runs of a session that nobody else uses, its feeds in turn."""
    upcoming = cycle(feeds)

    def run_once() -> float:
        feed = next(upcoming)
        started = clock.monotonic_s()
        session.run(feed)
        return clock.monotonic_s() - started

    return run_once


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
    """
    candidate = _Series(run_once, clock)
    series = [candidate] if baseline is None else [_Series(baseline, clock), candidate]
    deadline = clock.monotonic_s() + budget_s
    pace = [_warm_up(one, budget_s / (4 * len(series)), clock) for one in series]
    window_s = max(0.0, deadline - clock.monotonic_s()) / (2 * MIN_WINDOWS * len(series))
    runs = [_window_runs(window_s, seconds) for seconds in pace]
    _run_windows(series, runs, deadline, clock)
    times = np.array(candidate.samples())
    p50, p95, p99 = (float(value) * 1000 for value in np.percentile(times, (50, 95, 99)))
    return BenchmarkRecord(
        hardware_class=hardware_class,
        batch=batch,
        threads=threads,
        samples=len(times),
        windows=len(candidate.windows),
        steady=all(one.steady() for one in series),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        throughput=batch * len(times) / float(times.sum()) if times.sum() > 0 else 0.0,
        load_ms=load_ms,
        peak_rss_bytes=peak_rss_bytes,
        baseline_p50_ms=0.0 if baseline is None else float(np.median(series[0].samples())) * 1000,
        measured_at_ms=clock.wall_ms(),
        reported_by=reported_by,
    )


def _run_windows(series: Sequence[_Series], runs: Sequence[int], deadline: float, clock: Clock) -> None:
    """Window by window in turn, until all are steady or the time is over; never fewer than MIN_WINDOWS."""
    for done in range(MAX_WINDOWS):
        if done >= MIN_WINDOWS and (all(one.steady() for one in series) or clock.monotonic_s() >= deadline):
            return
        for one, count in zip(series, runs, strict=True):
            one.run_window(count, deadline)


def _warm_up(series: _Series, budget_s: float, clock: Clock) -> float:
    """Run until two groups of ten agree or the time is over; returns the seconds of one run."""
    deadline = clock.monotonic_s() + budget_s
    times = [series.run_once()]
    while clock.monotonic_s() < deadline:
        times.append(series.run_once())
        if len(times) >= 2 * WARM_UP_GROUP and len(times) % WARM_UP_GROUP == 0:
            last = sum(times[-WARM_UP_GROUP:])
            previous = sum(times[-2 * WARM_UP_GROUP : -WARM_UP_GROUP])
            if abs(last - previous) <= WARM_UP_BOUND * previous:
                break
    return float(np.median(times[-WARM_UP_GROUP:]))


def _window_runs(window_s: float, run_s: float) -> int:
    wanted = MAX_WINDOW_RUNS if run_s <= 0 else int(window_s / run_s)
    return max(MIN_WINDOW_RUNS, min(MAX_WINDOW_RUNS, wanted))


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
