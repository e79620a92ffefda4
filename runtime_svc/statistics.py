# SPDX-License-Identifier: Apache-2.0
"""Counts and durations of one served model version, in the terms of Triton's ModelStatistics.

What lives here is the bookkeeping only: the RPC that shows it is in `protocol`, the Prometheus form in `metrics`.
It is apart so that an artifact can be swapped without its model's figures starting again from zero.

Source: Triton Inference Server, statistics extension: a request counts once in `success`, `queue` and `compute_*`
(each request is charged the whole duration of its batch), `inference_count` counts rows, `execution_count` counts runs.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from dovetail.clock import Clock, SystemClock


@dataclass(frozen=True, slots=True)
class Duration:
    """How often something happened and how many nanoseconds it took in all."""

    count: int = 0
    ns: int = 0

    def plus(self, ns: int, times: int = 1) -> Duration:
        """With `times` more events of `ns` nanoseconds each."""
        return Duration(self.count + times, self.ns + ns * times)


@dataclass(frozen=True, slots=True)
class BatchDurations:
    """Executions of one batch size."""

    compute_input: Duration = Duration()
    compute_infer: Duration = Duration()
    compute_output: Duration = Duration()


@dataclass(frozen=True, slots=True)
class Execution:
    """One run of the engine.

    Attributes:
        rows: Rows of the whole batch.
        queue_ns: For each request, from arrival to the start of the batch.
        input_ns: Gathering the rows.
        infer_ns: In the engine.
        output_ns: Scattering the rows.
    """

    rows: int
    queue_ns: Sequence[int]
    input_ns: int
    infer_ns: int
    output_ns: int

    @property
    def compute_ns(self) -> int:
        """From the start of the batch to its end."""
        return self.input_ns + self.infer_ns + self.output_ns


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
    batches: Mapping[int, BatchDurations] = field(default_factory=dict)


class ModelStatistics:
    """Running figures of a model version. Thread-safe: instances write while RPCs and scrapes read."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._figures = Snapshot()
        self._batches: dict[int, BatchDurations] = {}

    def record_execution(self, execution: Execution) -> None:
        """Add a run of the engine that succeeded, with the requests it served."""
        requests = len(execution.queue_ns)
        queue_ns = sum(execution.queue_ns)
        with self._lock:
            old = self._figures
            self._figures = replace(
                old,
                last_inference_ms=self._clock.wall_ms(),
                inference_count=old.inference_count + execution.rows,
                execution_count=old.execution_count + 1,
                success=Duration(
                    old.success.count + requests, old.success.ns + queue_ns + requests * execution.compute_ns
                ),
                queue=Duration(old.queue.count + requests, old.queue.ns + queue_ns),
                compute_input=old.compute_input.plus(execution.input_ns, requests),
                compute_infer=old.compute_infer.plus(execution.infer_ns, requests),
                compute_output=old.compute_output.plus(execution.output_ns, requests),
            )
            batch = self._batches.get(execution.rows, BatchDurations())
            self._batches[execution.rows] = BatchDurations(
                batch.compute_input.plus(execution.input_ns),
                batch.compute_infer.plus(execution.infer_ns),
                batch.compute_output.plus(execution.output_ns),
            )

    def record_failure(self, duration_ns: int) -> None:
        """Add a request that was refused, dropped or failed after `duration_ns` nanoseconds."""
        with self._lock:
            self._figures = replace(self._figures, fail=self._figures.fail.plus(duration_ns))

    def snapshot(self) -> Snapshot:
        """All figures, consistent with each other."""
        with self._lock:
            return replace(self._figures, batches=dict(self._batches))
