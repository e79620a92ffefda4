# SPDX-License-Identifier: Apache-2.0
"""Request patterns on scripted sessions and clocks: nothing waits for real, and callers are counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from dovetail.clock import Clock, ManualClock, SystemClock
from dovetail.engines.measure import measure_runs, record_of
from dovetail.engines.scenarios import MULTI_STREAM_SAMPLES, Series, callers_of, multi_stream, run_in_turns
from dovetail.engines.server_scenario import Arrival, Served, highest_rate, poisson, serve
from dovetail.engines.trace_file import MAX_ROWS, parse_trace, read_trace
from dovetail.errors import InvalidInputError, OverLimitError
from dovetail.tensor import Array, TensorSpec

FEEDS = [{"x": np.full((1, 1), number, np.float32)} for number in range(3)]


class CountingSession:
    """Knows how many callers were in it at once; waits until that many are, so that a test need not hope."""

    inputs = (TensorSpec("x", "FP32", (-1, 1)),)
    outputs = (TensorSpec("y", "FP32", (-1, 1)),)
    concurrent = True

    def __init__(self, together: int) -> None:
        self._barrier = threading.Barrier(together)
        self.runs = 0
        self.first_values: set[float] = set()
        self._lock = threading.Lock()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        with self._lock:
            self.runs += 1
            self.first_values.add(float(feeds["x"][0, 0]))
        self._barrier.wait(timeout=30)
        return {"y": feeds["x"]}

    def close(self) -> None:
        """Nothing to free."""


def taking(clock: ManualClock, seconds: Callable[[int], float]) -> Callable[[], float]:
    """A caller whose runs take what a function of their number says."""
    number = iter(range(10**6))

    def run_once() -> float:
        taken = seconds(next(number))
        clock.advance(taken)
        return taken

    return run_once


# --- one after another, and all at once


def test_percentiles_cpu_time_and_rate_come_from_the_windows_alone() -> None:
    clock = ManualClock()
    record = measure_runs(
        taking(clock, lambda number: 0.010 if number % 10 == 9 else 0.001),
        hardware_class="class",
        batch=2,
        threads=1,
        clock=clock,
        cpu_s=lambda: 3 * clock.monotonic_s(),
    )

    assert (record.p50_ms, record.p90_ms, record.p99_ms) == pytest.approx((1.0, 1.0, 10.0), rel=0.2)
    assert record.throughput == pytest.approx(2 / 0.0019, rel=0.02)
    assert record.cpu_ms == pytest.approx(3 * 1.9 / 2, rel=0.02)
    assert (record.scenario, record.streams) == ("single_stream", 1)


def test_cpu_time_is_unknown_where_the_process_does_other_things() -> None:
    clock = ManualClock()

    record = measure_runs(taking(clock, lambda _: 0.001), hardware_class="c", batch=1, threads=1, clock=clock)

    assert record.cpu_ms == 0.0


def test_offline_runs_as_many_callers_at_once_as_there_are_streams_each_on_another_feed() -> None:
    session = CountingSession(together=3)
    clock = SystemClock()
    series = Series(callers_of(session, FEEDS, clock, streams=3), clock, least_runs=2)

    outcome = run_in_turns([series], 0.0, clock)[0]

    assert session.runs % 3 == 0  # the barrier would have broken with fewer at once
    assert len(outcome.latencies_s) == 3 * outcome.windows * 2
    assert session.first_values == {0.0, 1.0, 2.0}


def test_a_failing_caller_ends_the_measurement() -> None:
    def broken() -> float:
        raise InvalidInputError("broken")

    clock = SystemClock()
    with pytest.raises(InvalidInputError, match="broken"):
        run_in_turns([Series([broken, broken], clock)], 0.1, clock)


def test_a_multi_stream_query_is_eight_runs_and_lasts_until_the_last_is_done() -> None:
    clock = ManualClock()
    with multi_stream([taking(clock, lambda number: 0.001 * (1 + number % 8))], clock) as query:
        assert query() == pytest.approx(0.036)

    session = CountingSession(together=2)
    real = SystemClock()
    with multi_stream(callers_of(session, FEEDS, real, streams=2), real) as query:
        query()
    assert session.runs == MULTI_STREAM_SAMPLES


def test_a_batch_is_held_against_as_many_single_rows_of_the_baseline() -> None:
    clock = ManualClock()
    both = run_in_turns(
        [Series([taking(clock, lambda _: 0.004)], clock), Series([taking(clock, lambda _: 0.008)], clock)], 1.0, clock
    )

    record = record_of(both[1], baseline=both[0], baseline_rows=1, hardware_class="c", batch=8, threads=1, clock=clock)

    assert record.baseline_p50_ms == pytest.approx(32.0)
    assert record.speedup == pytest.approx(4.0)


# --- requests that come when they come


def test_poisson_arrivals_have_the_rate_and_scale_with_it() -> None:
    slow, fast = poisson(10.0, 4000), poisson(20.0, 4000)

    assert 4000 / slow[-1].offset_s == pytest.approx(10.0, rel=0.05)
    assert fast[-1].offset_s == pytest.approx(slow[-1].offset_s / 2)
    gaps = np.diff([arrival.offset_s for arrival in slow])
    assert float(np.std(gaps)) == pytest.approx(float(np.mean(gaps)), rel=0.1)  # as exponential gaps have it
    assert poisson(10.0, 5) != poisson(10.0, 5, seed=1)
    with pytest.raises(InvalidInputError):
        poisson(0.0, 5)


def test_latency_counts_from_when_a_request_was_due() -> None:
    clock = ManualClock()
    arrivals = [Arrival(0.0), Arrival(0.1), Arrival(5.0, rows=3)]

    served = serve([lambda rows: clock.advance(1.0)], arrivals, clock, sleep=clock.advance)

    assert list(served.outcome.latencies_s) == pytest.approx([1.0, 1.9, 1.0])
    assert (served.rows, served.complete) == (5, True)
    assert served.outcome.wall_s == pytest.approx(6.0)


def test_a_queue_that_grows_without_end_is_given_up() -> None:
    clock = ManualClock()
    arrivals = [Arrival(0.0)] * 1000

    served = serve([lambda rows: clock.advance(1.0)], arrivals, clock, bound_ms=500, sleep=clock.advance)

    assert len(served.outcome.latencies_s) == 11  # the eleventh waited more than 20 times the bound
    assert not served.within(10**9)


def test_several_callers_share_one_queue() -> None:
    session = CountingSession(together=2)
    clock: Clock = SystemClock()
    callers = [lambda rows: session.run(FEEDS[0])] * 2

    served = serve(callers, [Arrival(0.0)] * 6, clock)

    assert (session.runs, served.complete) == (6, True)


def test_highest_rate_is_found_by_bisection_under_the_bound() -> None:
    """A single server with a constant service time of 10 ms: simulated exactly, with Poisson arrivals."""
    tried: list[float] = []

    def trial(rate: float) -> Served:
        tried.append(rate)
        clock = ManualClock()
        return serve(
            [lambda rows: clock.advance(0.010)], poisson(rate, 2000), clock, bound_ms=50.0, sleep=clock.advance
        )

    found = highest_rate(trial, 50.0, start_per_s=100.0)

    assert 40 < found.per_s < 90
    assert found.served is not None
    assert found.served.within(50.0)
    assert not trial(found.per_s * 1.1).within(50.0)
    assert tried[0] == 100.0
    assert found.trials == len(tried) - 1


def test_a_bound_below_a_single_run_holds_at_no_rate() -> None:
    clock = ManualClock()

    found = highest_rate(
        lambda rate: serve(
            [lambda rows: clock.advance(0.010)], poisson(rate, 200), clock, bound_ms=5.0, sleep=clock.advance
        ),
        5.0,
        start_per_s=100.0,
    )

    assert (found.per_s, found.served) == (0.0, None)


# --- traces


def test_trace_is_read_as_csv_with_or_without_header_and_as_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("# from the shop\noffset_ms,rows\n0\n12.5, 2\n\n12.5,1\n")

    assert read_trace(path) == [Arrival(0.0), Arrival(0.0125, 2), Arrival(0.0125, 1)]
    assert parse_trace("0\n7,3") == [Arrival(0.0), Arrival(0.007, 3)]
    assert parse_trace('{"offset_ms": 1}\n{"offset_ms": 2.5, "rows": 4}') == [Arrival(0.001), Arrival(0.0025, 4)]


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("", InvalidInputError, "holds no request"),
        ("offset_ms,rows\n", InvalidInputError, "holds no request"),
        ("1\nx", InvalidInputError, "line 2: expected offset_ms"),
        ("1,2,3", InvalidInputError, "3 fields"),
        ("5\n# later\n4", InvalidInputError, "line 3: its offset is before"),
        ("-1", InvalidInputError, "0 or more"),
        ("nan", InvalidInputError, "0 or more"),
        ("1,0", InvalidInputError, "at least 1 row"),
        (f"1,{MAX_ROWS + 1}", OverLimitError, "rows"),
        ("1e12", OverLimitError, "at most"),
        ('{"offset_ms": 1, "lines": 2}', InvalidInputError, "line 1: expected"),
        ('{"offset_ms": "1"}', InvalidInputError, "line 1: expected"),
        ('{"offset_ms": true}', InvalidInputError, "line 1: expected"),
        ('{"offset_ms": 1, "rows": 1.5}', InvalidInputError, "line 1: expected"),
        ("{" * 5000, InvalidInputError, "not a JSON object"),
    ],
)
def test_what_is_no_trace_is_refused_with_its_line(text: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        parse_trace(text)


def test_trace_beyond_the_limits_or_no_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trace"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInputError, match="UTF-8"):
        read_trace(path)
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_trace(tmp_path / "none")
    monkeypatch.setattr("dovetail.engines.trace_file.MAX_REQUESTS", 2)
    with pytest.raises(OverLimitError, match="more than 2"):
        parse_trace("1\n2\n3")
    monkeypatch.setattr("dovetail.engines.trace_file.MAX_BYTES", 2)
    with pytest.raises(OverLimitError, match="larger"):
        read_trace(path)
