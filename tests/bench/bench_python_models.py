# SPDX-License-Identifier: Apache-2.0
"""What a call to a Python model costs beside its own code: into its process and back, small and large tensors."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dovetail.tensor import TensorSpec
from runtime_svc.configuration.serving_config import SequenceBatching, ServingConfig
from runtime_svc.python_models.open_model import open_python_model
from runtime_svc.python_models.session import PythonSession
from runtime_svc.scheduling.iterative.turns import Turn
from runtime_svc.scheduling.request import InferenceRequest
from tests.bench.figures import Figure

IDENTITY = """
class Model:
    def infer(self, request):
        return {"y": request["x"]}
"""
YIELDING = """
class Model:
    def infer(self, request):
        for _ in range(1000):
            yield {"y": request["x"]}
"""
TURNING = """
class Model:
    def infer(self, requests):
        for request in requests:
            request.reply({"y": request["x"]})
            request.again()
"""
SIZES = ((16, 3000, 200.0), (4096, 3000, 250.0), (65536, 2000, 0), (1 << 20, 500, 0), (16 << 20, 30, 0))
"""Bytes in and as many out; calls; goal in microseconds, 0: none."""


def run() -> list[Figure]:
    """Measure."""
    with tempfile.TemporaryDirectory() as folder:
        session = _opened(Path(folder) / "identity", IDENTITY, decoupled=False)
        found = [_call(session, size, calls, goal) for size, calls, goal in SIZES]
        session.close()
        session = _opened(Path(folder) / "yielding", YIELDING, decoupled=True)
        found.append(_reply(session))
        session.close()
        session = _opened(Path(folder) / "turning", TURNING, decoupled=True, iterative=True)
        found.append(_turn(session))
        session.close()
    return found


def _opened(folder: Path, code: str, *, decoupled: bool, iterative: bool = False) -> PythonSession:
    folder.mkdir()
    (folder / "model.py").write_text(code)
    tensors = [(TensorSpec(name, "FP32", (-1, -1)),) for name in ("x", "y")]
    sequences = SequenceBatching(iterative=True) if iterative else None
    config = ServingConfig(decoupled=decoupled, sequences=sequences)
    model = open_python_model(
        folder, config, name="m", version=1, inputs=tensors[0], outputs=tensors[1], max_batch_size=8
    )
    return model.sessions[0]


def _call(session: PythonSession, size: int, calls: int, goal: float) -> Figure:
    feeds = {"x": np.zeros((1, size // 4), np.float32)}
    times = _times(lambda: session.run(feeds), calls)
    p99 = times[int(len(times) * 0.99)]
    note = f"p99 {p99:.0f}; one call at a time, process and back"
    return Figure(f"Python model, {size} bytes in and out: p50", statistics.median(times), "us", goal, note=note)


def _reply(session: PythonSession) -> Figure:
    feeds = {"x": np.zeros((1, 4), np.float32)}
    times = [each / 1000 for each in _times(lambda: session.run_decoupled(feeds, lambda reply: None), 10)]
    return Figure("Python model, decoupled: a reply", statistics.median(times), "us", 200.0, note="1000 replies each")


def _turn(session: PythonSession) -> Figure:
    request = InferenceRequest({"x": np.zeros((1, 4), np.float32)})
    session.run_turns([Turn(key, request) for key in range(8)], ())
    turns = [Turn(key) for key in range(8)]
    times = _times(lambda: session.run_turns(turns, ()), 2000)
    return Figure("Python model, iterative: a turn of 8 requests", statistics.median(times), "us", note="a reply each")


def _times(work: Callable[[], object], count: int) -> list[float]:
    """Sorted microseconds of each call, after a tenth as many for warming up."""
    found = []
    for number in range(count + count // 10 + 3):
        began_ns = time.perf_counter_ns()
        work()
        if number >= count // 10 + 3:
            found.append((time.perf_counter_ns() - began_ns) / 1000)
    return sorted(found)
