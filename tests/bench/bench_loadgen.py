# SPDX-License-Identifier: Apache-2.0
"""Our scenarios against MLPerf LoadGen's own, on one session in one process: do both say the same?

A cross-check, not how artifacts are measured (`dovetail.engines.scenarios` says why). Needs the package
`mlcommons-loadgen`, which nothing else does; without it the check is left out and says so. LoadGen keeps its state in
the process and writes its results to files, so each of its tests runs in a process of its own beside ours.

python -m tests.bench.bench_loadgen single_stream MODEL.onnx    is one such process
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from dovetail.clock import SystemClock
from dovetail.engines import Session, SessionOptions, create_engine
from dovetail.engines.scenarios import Series, callers_of, process_cpu_s, run_in_turns
from tests.bench.figures import Figure

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits"
SECONDS = 3.0
SUMMARY = "mlperf_log_summary.txt"
_FIGURES = {
    "single_stream": re.compile(r"^90\.0* percentile latency \(ns\)\s*:\s*(\d+)", re.MULTILINE),
    "offline": re.compile(r"^Samples per second\s*:\s*([\d.eE+]+)", re.MULTILINE),
}


def run() -> list[Figure]:
    """Measure."""
    if importlib.util.find_spec("mlperf_loadgen") is None:
        sys.stderr.write("bench_loadgen: left out, mlcommons-loadgen is not installed\n")
        return []
    found: list[Figure] = []
    for scenario, unit in (("single_stream", "p90 ms"), ("offline", "rows/s")):
        ours, theirs = _both(scenario, DIGITS / "digits.onnx")
        note = f"ours {ours:.4g} {unit}, LoadGen's {theirs:.4g}; same session, in turns"
        found.append(Figure(f"{scenario}: difference from LoadGen", 100 * abs(ours / theirs - 1), "%", 15.0, note=note))
    return found


def _both(scenario: str, model: Path) -> tuple[float, float]:
    command = [sys.executable, "-m", "tests.bench.bench_loadgen", scenario, str(model)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    return figures["ours"], figures["loadgen"]


def main(scenario: str, model: Path) -> None:
    """Ours, LoadGen's, ours again; the mean of ours is compared, so that a drift of the machine cancels out."""
    session = create_engine("onnxruntime").load({"model.onnx": model}, SessionOptions(threads=1))
    feeds = [{spec.name: np.zeros([max(1, dim) for dim in spec.shape], np.float32) for spec in session.inputs}]
    first = _ours(scenario, session, feeds)
    theirs = _loadgen(scenario, session, feeds[0])
    second = _ours(scenario, session, feeds)
    sys.stdout.write(json.dumps({"ours": (first + second) / 2, "loadgen": theirs}) + "\n")


def _ours(scenario: str, session: Session, feeds: list[dict[str, Any]]) -> float:
    clock = SystemClock()
    series = Series(callers_of(session, feeds, clock, 1), clock, process_cpu_s)
    outcome = run_in_turns([series], SECONDS, clock)[0]
    return outcome.percentile_ms(90) if scenario == "single_stream" else outcome.queries_per_s


def _loadgen(scenario: str, session: Session, feed: dict[str, Any]) -> float:
    import mlperf_loadgen as loadgen

    def issue(samples: list[Any]) -> None:
        for sample in samples:
            session.run(feed)
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(sample.id, 0, 0)])

    settings = loadgen.TestSettings()
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = int(SECONDS * 1000)
    settings.min_query_count = 100
    if scenario == "single_stream":
        settings.scenario = loadgen.TestScenario.SingleStream
        settings.single_stream_expected_latency_ns = 100_000
    else:
        settings.scenario = loadgen.TestScenario.Offline
        settings.offline_expected_qps = _rate(session, feed)
    with tempfile.TemporaryDirectory() as folder:
        log = loadgen.LogSettings()
        log.enable_trace = False
        log.log_output = loadgen.LogOutputSettings()
        log.log_output.outdir = folder
        log.log_output.copy_summary_to_stdout = False
        system = loadgen.ConstructSUT(issue, lambda: None)
        library = loadgen.ConstructQSL(64, 64, lambda samples: None, lambda samples: None)
        loadgen.StartTestWithLogSettings(system, library, settings, log)
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(system)
        text = (Path(folder) / SUMMARY).read_text()
    match = _FIGURES[scenario].search(text)
    assert match, text
    return float(match[1]) / 1e6 if scenario == "single_stream" else float(match[1])


def _rate(session: Session, feed: dict[str, Any]) -> float:
    started = time.perf_counter()
    for _ in range(200):
        session.run(feed)
    return 200 / (time.perf_counter() - started)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
