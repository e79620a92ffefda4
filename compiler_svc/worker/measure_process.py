# SPDX-License-Identifier: Apache-2.0
"""The measuring process: `python -m compiler_svc.worker.measure_process SUBJECT` loads an artifact and times it.

SUBJECT is the JSON form of `Subject`. Each line of standard input is the JSON form of an `Ask`; each is answered by one
line on standard output, `{"record": …}` or `{"error": "…"}`; what libraries print goes to standard error. The process
ends with its input. It is a process of its own because the one that built the artifact cannot tell what loading costs:
its heap is full of freed blocks that a session reuses (a 1.7 MB net looked like 7 MiB there and needs 15 MiB in a fresh
one), and because runs inside one process share its luck, so that only several processes show how sure a figure is.

Load time and memory are told in the first answer only: later ones come from a process that is no longer fresh.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from compiler_svc.tuning.space import Settings
from compiler_svc.tuning.subject import Ask, Subject
from dovetail.benchmark import BenchmarkRecord
from dovetail.clock import Clock, SystemClock
from dovetail.engines import Session, SessionOptions, create_engine
from dovetail.engines.goldens import read_goldens
from dovetail.engines.measure import Loaded, load_measured, record_of
from dovetail.engines.scenarios import (
    MULTI_STREAM_SAMPLES,
    Feeds,
    Series,
    callers_of,
    multi_stream,
    process_cpu_s,
    run_in_turns,
)
from dovetail.engines.server_scenario import MIN_ARRIVALS, Arrival, RunRows, Served, highest_rate, poisson, serve
from dovetail.engines.trace_file import read_trace
from dovetail.errors import DovetailError, EngineError, InvalidInputError

LEAST_RUNS = 2
"""Runs of a window of a slow model; several processes make up for the few."""


class MeasuringProcess:
    """One artifact and the sessions of it that are loaded; used by one thread."""

    def __init__(self, subject: Subject, clock: Clock) -> None:
        self._subject = subject
        self._clock = clock
        self._engine = create_engine(subject.contract.engine)
        goldens = read_goldens(subject.feeds)
        self._feeds = [run.inputs for run in goldens.runs]
        first = self._feeds[0][goldens.inputs[0].name]
        self._feed_rows = len(first) if first.ndim else 1
        self._loads = 0
        self._loaded: dict[tuple[int, int], Loaded] = {}
        self._baselines: dict[int, Session] = {}

    def look(self, ask: Ask) -> BenchmarkRecord:
        """Measure.

        Raises:
            EngineError: The artifact does not load or run like that.
            InvalidInputError: The scenario is unknown, or its trace is not readable.
        """
        scenario = _SCENARIOS.get(ask.scenario)
        if scenario is None:
            raise InvalidInputError(f"scenario {ask.scenario!r} is unknown; there is {', '.join(_SCENARIOS)}")
        return scenario(self, ask)

    def alone(self, ask: Ask) -> BenchmarkRecord:
        """SingleStream and Offline: the next run when the last one ended, with as many callers as there are streams."""
        if ask.scenario == "single_stream" and ask.settings.streams > 1:
            raise InvalidInputError("the scenario single_stream has one stream")
        loaded = self._load(ask.settings)
        feeds = rows_of(self._feeds, ask.settings.batch)
        callers = callers_of(loaded.session, feeds, self._clock, ask.settings.streams)
        series = [Series(callers, self._clock, process_cpu_s, LEAST_RUNS)]
        if ask.baseline and (baseline := self._baseline(ask.settings)) is not None:
            slow = callers_of(baseline, self._feeds, self._clock, ask.settings.streams)
            series.insert(0, Series(slow, self._clock, None, LEAST_RUNS))
        outcomes = run_in_turns(series, ask.seconds, self._clock)
        beside = outcomes[0] if len(outcomes) > 1 else None
        return record_of(outcomes[-1], baseline=beside, baseline_rows=self._feed_rows, **self._facts(ask, loaded))

    def eight(self, ask: Ask) -> BenchmarkRecord:
        """MultiStream."""
        loaded = self._load(ask.settings)
        feeds = rows_of(self._feeds, ask.settings.batch)
        callers = callers_of(loaded.session, feeds, self._clock, ask.settings.streams)
        with multi_stream(callers, self._clock) as query:
            series = Series([query], self._clock, process_cpu_s, LEAST_RUNS)
            outcome = run_in_turns([series], ask.seconds, self._clock)[0]
        rows = MULTI_STREAM_SAMPLES * ask.settings.batch * self._feed_rows
        return record_of(outcome, rows_per_query=rows, **self._facts(ask, loaded))

    def server(self, ask: Ask) -> BenchmarkRecord:
        """Server: the highest rate under the bound, or the arrivals of a trace."""
        offline = self.alone(replace(ask, scenario="offline", seconds=ask.seconds / 4, baseline=False))
        loaded = self._load(ask.settings)
        callers = [self._row_runner(loaded.session) for _ in range(ask.settings.streams)]
        if ask.trace:
            served: Served | None = serve(callers, read_trace(Path(ask.trace)), self._clock, cpu_s=process_cpu_s)
        else:
            start_per_s = offline.throughput / ask.settings.batch

            def trial(rate_per_s: float) -> Served:
                count = max(MIN_ARRIVALS, int(rate_per_s * ask.seconds / 4))
                arrivals = [Arrival(item.offset_s, ask.settings.batch) for item in poisson(rate_per_s, count)]
                return serve(callers, arrivals, self._clock, bound_ms=ask.bound_ms, cpu_s=process_cpu_s)

            served = highest_rate(trial, ask.bound_ms, start_per_s=start_per_s).served
        if served is None:
            raise EngineError(
                f"no rate keeps the 99th percentile under {ask.bound_ms:g} ms; a single run may be over it"
            )
        record = record_of(served.outcome, **self._facts(ask, loaded))
        wall_s = served.outcome.wall_s
        cpu_ms = served.outcome.cpu_s * 1000 / served.rows
        return replace(record, throughput=served.rows / wall_s if wall_s > 0 else 0.0, cpu_ms=cpu_ms)

    def _row_runner(self, session: Session) -> RunRows:
        by_rows: dict[int, Feeds] = {}

        def run(rows: int) -> None:
            if rows not in by_rows:
                by_rows[rows] = rows_of(self._feeds, rows)[0]
            session.run(by_rows[rows])

        return run

    def _facts(self, ask: Ask, loaded: Loaded) -> dict[str, Any]:
        return {
            "hardware_class": self._subject.hardware_class,
            "batch": ask.settings.batch * self._feed_rows,
            "threads": ask.settings.threads,
            "streams": ask.settings.streams,
            "scenario": ask.scenario,
            "clock": self._clock,
            "load_ms": loaded.load_ms,
            "peak_rss_bytes": loaded.peak_rss_bytes if self._loads == 1 else 0,
        }

    def _load(self, settings: Settings) -> Loaded:
        key = (settings.threads, settings.streams)
        if key not in self._loaded:
            while len(self._loaded) >= max(1, self._subject.keep_sessions):
                self._loaded.pop(next(iter(self._loaded))).session.close()
            options = SessionOptions.of_contract(
                self._subject.contract,
                threads=settings.threads,
                cpu_features=self._subject.cpu_features,
                streams=settings.streams,
                own_build=True,
            )
            self._loads += 1
            self._loaded[key] = load_measured(
                lambda: self._engine.load(self._subject.files, options),
                rows_of(self._feeds, settings.batch),
                clock=self._clock,
            )
        loaded = self._loaded[key]
        if settings.streams > 1 and not loaded.session.concurrent:
            raise EngineError(
                f"engine {self._subject.contract.engine} takes one caller at a time, not {settings.streams}"
            )
        return loaded

    def _baseline(self, settings: Settings) -> Session | None:
        if self._subject.baseline is None:
            return None
        if settings.threads not in self._baselines:
            options = SessionOptions(threads=settings.threads, precision="fp32", optimize=False)
            files = {"model.onnx": self._subject.baseline}
            self._baselines[settings.threads] = create_engine("onnxruntime").load(files, options)
        return self._baselines[settings.threads]


_SCENARIOS = {
    "single_stream": MeasuringProcess.alone,
    "offline": MeasuringProcess.alone,
    "multi_stream": MeasuringProcess.eight,
    "server": MeasuringProcess.server,
}


def rows_of(feeds: Sequence[Feeds], rows: int) -> list[Feeds]:
    """Feeds of that many rows, made of one-row feeds in turn; each starts with another one.

    Raises:
        InvalidInputError: More than one row is asked for, and the feeds have no rows that could be put together.
    """
    if rows == 1:
        return list(feeds)
    if any(array.ndim == 0 or len(array) != 1 for feed in feeds for array in feed.values()):
        raise InvalidInputError(f"these inputs are not single rows, so no batch of {rows} can be made of them")
    if any(array.shape != feeds[0][name].shape for feed in feeds for name, array in feed.items()):
        feeds = feeds[:1]
    return [
        {name: np.concatenate([feeds[(start + row) % len(feeds)][name] for row in range(rows)]) for name in feeds[0]}
        for start in range(len(feeds))
    ]


def answer(process: MeasuringProcess, line: str) -> Mapping[str, Any]:
    """The reply to one line of input."""
    try:
        return {"record": process.look(Ask.from_json(json.loads(line))).to_json()}
    except DovetailError as exc:
        return {"error": str(exc)}
    except ValueError as exc:
        return {"error": f"not an order: {exc}"}


def main(subject: Subject, orders: TextIO, replies: TextIO) -> None:
    """Answer all lines."""
    with ExitStack() as stack:
        stack.callback(replies.close)
        process = MeasuringProcess(subject, SystemClock())
        for line in orders:
            replies.write(json.dumps(answer(process, line)) + "\n")
            replies.flush()


def _own_output() -> TextIO:
    """The original standard output for replies; what libraries print goes where errors go."""
    channel = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(channel, "w", encoding="utf-8")


if __name__ == "__main__":
    main(Subject.from_json(json.loads(sys.argv[1])), sys.stdin, _own_output())
