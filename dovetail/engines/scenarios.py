# SPDX-License-Identifier: Apache-2.0
"""How requests come while a session is measured: one after another, eight at once, or all there are.

What lives here: callers, warm-up, windows and the stability rule, for the scenarios in which the next request waits
for nothing but the session. The scenario with arrival times of its own is `server_scenario`; what becomes of the
timings is `measure`'s business. Times come from an injected clock, so that the rules can be tested without waiting.

The names and what each one counts are LoadGen's: SingleStream (one query in flight, p90), MultiStream (eight samples in
a query that is done when the last one is, p99), Offline (everything is there, samples per second). LoadGen itself does
not drive our measurements, it is their cross-check (`python -m tests.bench loadgen`): it cannot take turns with a
baseline in the same run, it knows a least duration but no steady state, it gives its figures in files only, and one
process can run one test at a time; and the package would have to be on every builder for what are a few loops.

Source: MLPerf Inference rules, "Scenarios", and LoadGen's README (mlcommons-loadgen 6.0.17). Of the stability rules: a
warm-up lasts until the mean of ten runs is within 5 % of the ten before it, and windows count when the last three agree
within 10 % (NVIDIA Model Navigator, there on means; here on medians, because one descheduling on a shared machine moves
a mean and not a median).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice

import numpy as np

from dovetail.clock import Clock
from dovetail.engines.base import Session
from dovetail.tensor import Array

WARM_UP_GROUP = 10
WARM_UP_BOUND = 0.05
WINDOW_BOUND = 0.10
MIN_WINDOWS = 3
MAX_WINDOWS = 24
MIN_WINDOW_RUNS = 5
MAX_WINDOW_RUNS = 2000
MULTI_STREAM_SAMPLES = 8
"""Samples of one MultiStream query. Source: MLPerf Inference rules."""

Feeds = Mapping[str, Array]
RunOnce = Callable[[], float]
"""Runs a session once with its next feed and returns the seconds that it took."""


@dataclass(frozen=True, slots=True)
class Window:
    """Some queries in a row.

    Attributes:
        latencies_s: One for each query.
        wall_s: Seconds that the window took; with one caller the sum of its latencies.
        cpu_s: CPU seconds of all threads of the process meanwhile; 0 if nobody counted.
    """

    latencies_s: Sequence[float]
    wall_s: float
    cpu_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the windows say together.

    Attributes:
        latencies_s: All latencies, float64.
        wall_s: Seconds in windows.
        cpu_s: CPU seconds in windows; 0 if nobody counted.
        windows: How many windows.
        steady: True if the last three agree.
    """

    latencies_s: Array
    wall_s: float
    cpu_s: float
    windows: int
    steady: bool

    def percentile_ms(self, percent: float) -> float:
        """A percentile of the latency."""
        return float(np.percentile(self.latencies_s, percent)) * 1000

    @property
    def queries_per_s(self) -> float:
        """All queries over the time in windows."""
        return len(self.latencies_s) / self.wall_s if self.wall_s > 0 else 0.0

    @property
    def cpu_ms(self) -> float:
        """CPU time of one query."""
        return self.cpu_s * 1000 / len(self.latencies_s)


@dataclass(slots=True)
class Series:
    """Timings of one session that is asked again and again.

    Attributes:
        callers: One for each query that is in flight at once; each is used by one thread.
        clock: What windows are measured on.
        cpu_s: CPU seconds of the process so far, such as `time.process_time`; None if they would say nothing, because
            the process does other things meanwhile.
        least_runs: Runs of a window at the deadline, for each caller.
    """

    callers: Sequence[RunOnce]
    clock: Clock
    cpu_s: Callable[[], float] | None = None
    least_runs: int = MIN_WINDOW_RUNS
    windows: list[Window] = field(default_factory=list)
    _pool: ThreadPoolExecutor | None = None

    def run_window(self, runs: int, deadline: float) -> None:
        """A window in which each caller makes that many runs, cut short at the deadline but not below the least."""
        cpu = self.cpu_s() if self.cpu_s else 0.0
        started = self.clock.monotonic_s()
        latencies = self._run(runs, deadline)
        wall = sum(latencies) if len(self.callers) == 1 else self.clock.monotonic_s() - started
        self.windows.append(Window(latencies, wall, self.cpu_s() - cpu if self.cpu_s else 0.0))

    def warm_up(self, budget_s: float) -> float:
        """Run until two groups of ten agree or the time is over; returns the seconds of one run of one caller."""
        deadline = self.clock.monotonic_s() + budget_s
        times = self._run(1, deadline)
        while self.clock.monotonic_s() < deadline:
            times += self._run(1, deadline)
            if len(times) >= 2 * WARM_UP_GROUP and len(times) % WARM_UP_GROUP < len(self.callers):
                last = sum(times[-WARM_UP_GROUP:])
                previous = sum(times[-2 * WARM_UP_GROUP : -WARM_UP_GROUP])
                if abs(last - previous) <= WARM_UP_BOUND * previous:
                    break
        return float(np.median(times[-WARM_UP_GROUP:]))

    def steady(self) -> bool:
        """True if the last three windows lie within the bound: their medians, with several callers their rates."""
        last = [_pace(window, len(self.callers)) for window in self.windows[-MIN_WINDOWS:]]
        return len(last) == MIN_WINDOWS and max(last) <= min(last) * (1 + WINDOW_BOUND)

    def outcome(self) -> Outcome:
        """All windows together."""
        return Outcome(
            np.array([sample for window in self.windows for sample in window.latencies_s]),
            sum(window.wall_s for window in self.windows),
            sum(window.cpu_s for window in self.windows),
            len(self.windows),
            self.steady(),
        )

    @contextmanager
    def threads(self) -> Iterator[None]:
        """Give each caller a thread meanwhile; nothing is started for a single one."""
        if len(self.callers) == 1:
            yield
            return
        with ThreadPoolExecutor(len(self.callers), thread_name_prefix="caller") as pool:
            self._pool = pool
            try:
                yield
            finally:
                self._pool = None

    def _run(self, runs: int, deadline: float) -> list[float]:
        if self._pool is None:
            return self._call(self.callers[0], runs, deadline)
        jobs = [self._pool.submit(self._call, caller, runs, deadline) for caller in self.callers]
        return [seconds for job in jobs for seconds in job.result()]

    def _call(self, caller: RunOnce, runs: int, deadline: float) -> list[float]:
        times: list[float] = []
        while len(times) < runs and (len(times) < self.least_runs or self.clock.monotonic_s() < deadline):
            times.append(caller())
        return times


def run_in_turns(series: Sequence[Series], budget_s: float, clock: Clock) -> list[Outcome]:
    """Warm all series up, then run their windows in turn, so that all see the same machine. Blocks.

    Args:
        series: The baselines first, the one that matters last.
        budget_s: For everything; slow sessions take longer, for three windows of the least runs.
        clock: That of the series.

    Raises:
        EngineError: A run failed.
    """
    deadline = clock.monotonic_s() + budget_s
    with ExitStack() as threads:
        for one in series:
            threads.enter_context(one.threads())
        pace = [one.warm_up(budget_s / (4 * len(series))) for one in series]
        window_s = max(0.0, deadline - clock.monotonic_s()) / (2 * MIN_WINDOWS * len(series))
        runs = [_window_runs(window_s, seconds, one.least_runs) for one, seconds in zip(series, pace, strict=True)]
        for done in range(MAX_WINDOWS):
            if done >= MIN_WINDOWS and (all(one.steady() for one in series) or clock.monotonic_s() >= deadline):
                break
            for one, count in zip(series, runs, strict=True):
                one.run_window(count, deadline)
    return [one.outcome() for one in series]


def timed(session: Session, feeds: Sequence[Feeds], clock: Clock, *, first: int = 0) -> RunOnce:
    """Runs of a session, its feeds in turn from a given one; for one thread, and a session that nobody else uses unless
    it lets several callers in.
    """
    upcoming = cycle([*islice(feeds, first % len(feeds), None), *islice(feeds, first % len(feeds))])

    def run_once() -> float:
        feed = next(upcoming)
        started = clock.monotonic_s()
        session.run(feed)
        return clock.monotonic_s() - started

    return run_once


def callers_of(session: Session, feeds: Sequence[Feeds], clock: Clock, streams: int) -> list[RunOnce]:
    """As many callers as the session was loaded for, each starting with another feed."""
    return [timed(session, feeds, clock, first=number) for number in range(streams)]


@contextmanager
def multi_stream(callers: Sequence[RunOnce], clock: Clock) -> Iterator[RunOnce]:
    """One caller whose query is `MULTI_STREAM_SAMPLES` runs, spread over the callers and done when the last one is."""
    with ThreadPoolExecutor(len(callers), thread_name_prefix="stream") as pool:

        def query() -> float:
            waiting = iter(range(MULTI_STREAM_SAMPLES))
            lock = threading.Lock()

            def work(caller: RunOnce) -> None:
                while True:
                    with lock:
                        if next(waiting, None) is None:
                            return
                    caller()

            started = clock.monotonic_s()
            if len(callers) == 1:
                work(callers[0])
            else:
                for job in [pool.submit(work, caller) for caller in callers]:
                    job.result()
            return clock.monotonic_s() - started

        yield query


def process_cpu_s() -> float:
    """CPU seconds of all threads of this process so far."""
    return time.process_time()


def _pace(window: Window, callers: int) -> float:
    if callers == 1:
        return float(np.median(window.latencies_s))
    return window.wall_s / len(window.latencies_s)


def _window_runs(window_s: float, run_s: float, least: int) -> int:
    wanted = MAX_WINDOW_RUNS if run_s <= 0 else int(window_s / run_s)
    return max(least, min(MAX_WINDOW_RUNS, wanted))
