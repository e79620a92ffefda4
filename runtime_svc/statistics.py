# SPDX-License-Identifier: Apache-2.0
"""Counts and durations of one served model version, in the terms of Triton's ModelStatistics.

What lives here is the bookkeeping only: the RPC that shows it is in `protocol`, the Prometheus form in `metrics`.
It is apart so that an artifact can be swapped without its model's figures starting again from zero.

Source: Triton Inference Server, statistics extension: a request counts once in `success`, `queue` and `compute_*`
(each request is charged the whole duration of its batch), `inference_count` counts rows, `execution_count` counts runs.
A cache hit counts in `success`, `queue` and `cache_hit` only.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from dovetail.clock import Clock, SystemClock


@dataclass(frozen=True, slots=True)
class Duration:
    """How often something happened and how many nanoseconds it took in all."""

    count: int = 0
    ns: int = 0


@dataclass(frozen=True, slots=True)
class BatchDurations:
    """Executions of one batch size."""

    compute_input: Duration = Duration()
    compute_infer: Duration = Duration()
    compute_output: Duration = Duration()


class Refusal(StrEnum):
    """Why a request ended without a run, or in the middle of it."""

    QUEUE_FULL = "queue_full"
    TIMEOUT = "timeout"
    DEADLINE = "deadline"
    PREDICTED = "predicted"
    CANCELLED = "cancelled"
    STOPPED = "stopped"


class Failure(StrEnum):
    """Why a request has no answer, in the words of Triton's metrics."""

    REJECTED = "REJECTED"
    CANCELED = "CANCELED"
    BACKEND = "BACKEND"
    OTHER = "OTHER"


@dataclass(frozen=True, slots=True)
class Execution:
    """One run of the engine, or with `runs` 0 the end of a request that took several.

    Attributes:
        rows: Rows of the whole batch, without padding.
        queue_ns: For each request that ends with the run, from arrival to the start of its first batch.
        input_ns: Gathering the rows.
        infer_ns: In the engine.
        output_ns: Scattering the rows.
        runs: 1; 0 if the runs were told of apart.
        padding: Rows that were run beyond those.
        closed_by: Why the batch had no more requests; "" if it was none.
    """

    rows: int
    queue_ns: Sequence[int]
    input_ns: int
    infer_ns: int
    output_ns: int
    runs: int = 1
    padding: int = 0
    closed_by: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The figures at one instant; see the module for what each counts."""

    last_inference_ms: int = 0
    inference_count: int = 0
    execution_count: int = 0
    success: Duration = Duration()
    fail: Duration = Duration()
    queue: Duration = Duration()
    compute_input: Duration = Duration()
    compute_infer: Duration = Duration()
    compute_output: Duration = Duration()
    cache_hit: Duration = Duration()
    cache_miss: Duration = Duration()
    padded_rows: int = 0
    batches: Mapping[int, BatchDurations] = field(default_factory=dict)
    closings: Mapping[str, int] = field(default_factory=dict)
    refusals: Mapping[Refusal, int] = field(default_factory=dict)
    failures: Mapping[Failure, int] = field(default_factory=dict)


class _Sum:
    """A Duration that grows; a frozen one for each request would cost more than everything else here."""

    __slots__ = ("count", "ns")

    def __init__(self) -> None:
        self.count = 0
        self.ns = 0

    def add(self, count: int, ns: int) -> None:
        self.count += count
        self.ns += ns

    def now(self) -> Duration:
        return Duration(self.count, self.ns)


class _BatchSums:
    __slots__ = ("infer", "input", "output")

    def __init__(self) -> None:
        self.input, self.infer, self.output = _Sum(), _Sum(), _Sum()


class ModelStatistics:
    """Running figures of a model version. Thread-safe: instances write while RPCs and scrapes read."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._last_ms = self._rows = self._runs = self._padded_rows = 0
        self._success, self._fail, self._queue = _Sum(), _Sum(), _Sum()
        self._input, self._infer, self._output = _Sum(), _Sum(), _Sum()
        self._cache_hit, self._cache_miss = _Sum(), _Sum()
        self._batches: dict[int, _BatchSums] = {}
        self._closings: Counter[str] = Counter()
        self._refusals: Counter[Refusal] = Counter()
        self._failures: Counter[Failure] = Counter()

    def record_execution(self, execution: Execution) -> None:
        """Add a run of the engine that succeeded, with the requests it served."""
        requests, queue_ns = len(execution.queue_ns), sum(execution.queue_ns)
        input_ns, infer_ns, output_ns = execution.input_ns, execution.infer_ns, execution.output_ns
        now_ms = self._clock.wall_ms()
        with self._lock:
            self._last_ms = now_ms
            self._rows += execution.rows
            self._runs += execution.runs
            self._padded_rows += execution.padding
            self._success.add(requests, queue_ns + requests * (input_ns + infer_ns + output_ns))
            self._queue.add(requests, queue_ns)
            self._input.add(requests, requests * input_ns)
            self._infer.add(requests, requests * infer_ns)
            self._output.add(requests, requests * output_ns)
            if not execution.runs:
                return
            if execution.closed_by:
                self._closings[execution.closed_by] += 1
            batch = self._batches.get(execution.rows)
            if batch is None:
                batch = self._batches[execution.rows] = _BatchSums()
            batch.input.add(1, input_ns)
            batch.infer.add(1, infer_ns)
            batch.output.add(1, output_ns)

    def record_failure(self, duration_ns: int, failure: Failure = Failure.OTHER) -> None:
        """Add a request that was refused, dropped or failed after `duration_ns` nanoseconds."""
        with self._lock:
            self._fail.add(1, duration_ns)
            self._failures[failure] += 1

    def record_refusal(self, reason: Refusal) -> None:
        """Say why a request ended without a run; that it failed is told apart."""
        with self._lock:
            self._refusals[reason] += 1

    def record_cache_hit(self, duration_ns: int) -> None:
        """Add a request that was answered from the response cache: it succeeded, without a run."""
        now_ms = self._clock.wall_ms()
        with self._lock:
            self._last_ms = now_ms
            self._success.add(1, duration_ns)
            self._queue.add(1, 0)
            self._cache_hit.add(1, duration_ns)

    def record_cache_miss(self, duration_ns: int) -> None:
        """Add a look into the response cache, and the keeping of the answer, that were in vain this time."""
        with self._lock:
            self._cache_miss.add(1, duration_ns)

    def snapshot(self) -> Snapshot:
        """All figures, consistent with each other."""
        with self._lock:
            return Snapshot(
                last_inference_ms=self._last_ms,
                inference_count=self._rows,
                execution_count=self._runs,
                success=self._success.now(),
                fail=self._fail.now(),
                queue=self._queue.now(),
                compute_input=self._input.now(),
                compute_infer=self._infer.now(),
                compute_output=self._output.now(),
                cache_hit=self._cache_hit.now(),
                cache_miss=self._cache_miss.now(),
                padded_rows=self._padded_rows,
                batches={
                    rows: BatchDurations(sums.input.now(), sums.infer.now(), sums.output.now())
                    for rows, sums in self._batches.items()
                },
                closings=dict(self._closings),
                refusals=dict(self._refusals),
                failures=dict(self._failures),
            )
