# SPDX-License-Identifier: Apache-2.0
"""The benchmark's rules, on sessions whose duration is scripted: no real time passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count

import numpy as np
import pytest

from dovetail.clock import ManualClock
from dovetail.engines.measure import MIN_WINDOWS, Loaded, load_measured, measure
from dovetail.tensor import Array, TensorSpec

FEEDS = [{"x": np.zeros((2, 1), np.float32)}]


class TimedSession:
    """Each run takes the time that a function of the run's number says."""

    inputs = (TensorSpec("x", "FP32", (-1, 1)),)
    outputs = (TensorSpec("y", "FP32", (-1, 1)),)
    concurrent = True

    def __init__(self, clock: ManualClock, duration_s: Callable[[int], float], log: list[str], name: str) -> None:
        self._clock, self._duration_s, self._log, self._name = clock, duration_s, log, name
        self._number = count()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self._clock.advance(self._duration_s(next(self._number)))
        self._log.append(self._name)
        return {"y": feeds["x"]}

    def close(self) -> None:
        """Nothing to free."""


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def session(
    clock: ManualClock, duration_s: Callable[[int], float], log: list[str] | None = None, name: str = "c"
) -> Loaded:
    return Loaded(TimedSession(clock, duration_s, [] if log is None else log, name), 12.5, 4096)


def test_steady_session_is_reported_exactly(clock: ManualClock) -> None:
    baseline = session(clock, lambda number: 0.004).session

    record = measure(
        session(clock, lambda number: 0.001),
        FEEDS,
        hardware_class="class",
        batch=2,
        threads=3,
        baseline=baseline,
        clock=clock,
    )

    assert record.steady
    assert record.windows == MIN_WINDOWS
    assert record.p50_ms == pytest.approx(1.0)
    assert record.p99_ms == pytest.approx(1.0)
    assert record.throughput == pytest.approx(2000)
    assert record.baseline_p50_ms == pytest.approx(4.0)
    assert record.speedup == pytest.approx(4.0)
    assert (record.load_ms, record.peak_rss_bytes, record.threads, record.batch) == (12.5, 4096, 3, 2)


def test_slow_first_runs_do_not_count(clock: ManualClock) -> None:
    record = measure(
        session(clock, lambda number: 0.1 if number < 3 else 0.001),
        FEEDS,
        hardware_class="class",
        batch=1,
        threads=1,
        budget_s=4.0,
        clock=clock,
    )

    assert record.steady
    assert record.p99_ms == pytest.approx(1.0)


def test_session_that_never_settles_ends_in_time_and_says_so(clock: ManualClock) -> None:
    started = clock.monotonic_s()

    record = measure(
        session(clock, lambda number: 0.001 * (1.2 ** (number // 20))),
        FEEDS,
        hardware_class="class",
        batch=1,
        threads=1,
        budget_s=2.0,
        clock=clock,
    )

    assert not record.steady
    assert record.windows >= MIN_WINDOWS
    assert clock.monotonic_s() - started < 2.5


def test_slow_model_still_gets_three_windows(clock: ManualClock) -> None:
    record = measure(
        session(clock, lambda number: 3.0), FEEDS, hardware_class="class", batch=1, threads=1, budget_s=1.0, clock=clock
    )

    assert record.windows == MIN_WINDOWS
    assert record.samples == 3 * 5
    assert record.p50_ms == pytest.approx(3000)


def test_windows_of_baseline_and_candidate_take_turns(clock: ManualClock) -> None:
    log: list[str] = []
    baseline = session(clock, lambda number: 0.1, log, "b").session

    measure(
        session(clock, lambda number: 0.1, log, "c"),
        FEEDS,
        hardware_class="class",
        batch=1,
        threads=1,
        baseline=baseline,
        budget_s=1.0,
        clock=clock,
    )

    windows = log[-2 * MIN_WINDOWS * 5 :]
    assert "".join(windows) == ("b" * 5 + "c" * 5) * MIN_WINDOWS


def test_load_time_is_measured_and_memory_is_found(clock: ManualClock) -> None:
    kept: list[bytearray] = []

    def load() -> TimedSession:
        clock.advance(0.25)
        kept.append(bytearray(b"\1") * (64 << 20))
        return TimedSession(clock, lambda number: 0.001, [], "c")

    loaded = load_measured(load, FEEDS, clock=clock)

    assert loaded.load_ms == pytest.approx(250)
    assert loaded.peak_rss_bytes == 0 or 60 << 20 <= loaded.peak_rss_bytes <= 160 << 20
