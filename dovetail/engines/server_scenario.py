# SPDX-License-Identifier: Apache-2.0
"""Requests that come when they come: the highest rate at which the 99th percentile stays under a bound.

What lives here: arrival times (Poisson, or those of a trace), serving them with a queue before the callers, and the
search for the rate. A latency counts from the moment the request was due, not from the moment somebody had time for
it: otherwise a server that falls behind looks fast. Time and sleep are injected.

Source: MLPerf Inference rules, scenario Server (Poisson arrivals, 99th percentile under a bound), and LoadGen's
README. Counting from the due time avoids what G. Tene named coordinated omission.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from dovetail.clock import Clock
from dovetail.engines.scenarios import Outcome
from dovetail.errors import InvalidInputError

SEED = 20240229  # equal seeds give equal arrivals, so that two candidates see the same bursts
STOP_FACTOR = 20.0
"""A trial ends when a request waited that many times the bound: the queue grows without end, the rate is hopeless."""

MIN_ARRIVALS = 100
"""Fewest arrivals of a trial; a 99th percentile of fewer is their maximum."""

RunRows = Callable[[int], object]
"""Runs a session once with that many rows; one for each caller, each used by one thread."""

Sleep = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request.

    Attributes:
        offset_s: When it is due, from the start.
        rows: How many rows it brings.
    """

    offset_s: float
    rows: int = 1


@dataclass(frozen=True, slots=True)
class Served:
    """How a list of arrivals went.

    Attributes:
        outcome: Latencies from the due times, in order of completion; steady if nothing was left out.
        rows: Rows that were served.
        offered: How many requests there were.
    """

    outcome: Outcome
    rows: int
    offered: int

    @property
    def complete(self) -> bool:
        """False if the trial was ended because the queue grew without end."""
        return len(self.outcome.latencies_s) == self.offered

    def within(self, bound_ms: float) -> bool:
        """True if all was served and the 99th percentile is under the bound."""
        return self.complete and self.outcome.percentile_ms(99) <= bound_ms


@dataclass(frozen=True, slots=True)
class Rate:
    """The highest rate that was seen to hold.

    Attributes:
        per_s: Requests per second; 0 if not even the lowest rate that was tried held.
        served: Of the trial at that rate; None if none held.
        trials: How many rates were tried.
    """

    per_s: float
    served: Served | None
    trials: int


def poisson(rate_per_s: float, count: int, *, seed: int = SEED) -> list[Arrival]:
    """Arrivals of one row whose gaps are exponential with that mean rate; at another rate the same gaps, scaled.

    Raises:
        InvalidInputError: Rate or count is not positive.
    """
    if not rate_per_s > 0 or count < 1:
        raise InvalidInputError(f"arrivals need a rate and a count above 0, got {rate_per_s} per second and {count}")
    gaps = np.random.default_rng(seed).exponential(1.0, count) / rate_per_s
    return [Arrival(float(offset)) for offset in np.cumsum(gaps)]


def serve(
    callers: Sequence[RunRows],
    arrivals: Sequence[Arrival],
    clock: Clock,
    *,
    bound_ms: float = float("inf"),
    sleep: Sleep = time.sleep,
    cpu_s: Callable[[], float] | None = None,
) -> Served:
    """Serve the arrivals in their order, each by the caller that is free first. Blocks until the last is done.

    Args:
        callers: As many as requests may be in flight.
        arrivals: In order of time.
        clock: Due times and latencies are measured on it.
        bound_ms: The trial ends early once a request waited `STOP_FACTOR` times as long.
        sleep: Waits for the next due time; the clock must move meanwhile.
        cpu_s: CPU seconds of the process so far, or None.

    Raises:
        EngineError: A run failed.
    """
    queue = _Queue(arrivals, clock, bound_ms * STOP_FACTOR / 1000, sleep)
    cpu = cpu_s() if cpu_s else 0.0
    if len(callers) == 1:
        queue.work(callers[0])
    else:
        with ThreadPoolExecutor(len(callers), thread_name_prefix="server") as pool:
            for job in [pool.submit(queue.work, caller) for caller in callers]:
                job.result()
    complete = len(queue.latencies_s) == len(arrivals)
    wall = clock.monotonic_s() - queue.started
    outcome = Outcome(np.array(queue.latencies_s), wall, (cpu_s() if cpu_s else 0.0) - cpu, 1, complete)
    return Served(outcome, queue.rows, len(arrivals))


def highest_rate(
    trial: Callable[[float], Served],
    bound_ms: float,
    *,
    start_per_s: float,
    tolerance: float = 0.05,
    most_trials: int = 12,
) -> Rate:
    """Bisection for the highest rate whose 99th percentile is under the bound.

    A rate above what the session can do back to back cannot hold, so the search starts there and goes down by halves
    until one holds; then it halves the gap between what holds and what does not.

    Args:
        trial: Serves arrivals at a rate.
        bound_ms: The bound.
        start_per_s: Upper end: the rate of the Offline scenario.
        tolerance: Ends when the gap is that share of the rate.
        most_trials: Ends then at the latest.

    Raises:
        InvalidInputError: Bound or start is not positive.
    """
    if not bound_ms > 0 or not start_per_s > 0:
        raise InvalidInputError(f"the server scenario needs a bound and a rate above 0, got {bound_ms}, {start_per_s}")
    holds, fails = 0.0, start_per_s * (1 + tolerance)
    best: Served | None = None
    rate = start_per_s
    for number in range(1, most_trials + 1):
        served = trial(rate)
        if served.within(bound_ms):
            holds, best = rate, served
        else:
            fails = rate
        if holds > 0 and fails - holds <= tolerance * holds:
            return Rate(holds, best, number)
        rate = (holds + fails) / 2 if holds > 0 else fails / 2
    return Rate(holds, best, most_trials)


class _Queue:
    """The arrivals that nobody serves yet; `work` is called by each caller's thread."""

    def __init__(self, arrivals: Sequence[Arrival], clock: Clock, patience_s: float, sleep: Sleep) -> None:
        self._arrivals = arrivals
        self._clock = clock
        self._patience_s = patience_s
        self._sleep = sleep
        self._lock = threading.Lock()
        self._next = 0
        self._given_up = False
        self.started = clock.monotonic_s()
        self.latencies_s: list[float] = []
        self.rows = 0

    def work(self, run: RunRows) -> None:
        """Serve until there is nothing left, or somebody gave up."""
        while (arrival := self._take()) is not None:
            due = self.started + arrival.offset_s
            early = due - self._clock.monotonic_s()
            if early > 0:
                self._sleep(early)
            run(arrival.rows)
            self._done(arrival, self._clock.monotonic_s() - due)

    def _take(self) -> Arrival | None:
        with self._lock:
            if self._given_up or self._next >= len(self._arrivals):
                return None
            self._next += 1
            return self._arrivals[self._next - 1]

    def _done(self, arrival: Arrival, latency_s: float) -> None:
        with self._lock:
            self.latencies_s.append(latency_s)
            self.rows += arrival.rows
            if latency_s > self._patience_s:
                self._given_up = True
