# SPDX-License-Identifier: Apache-2.0
"""Python models for tests: one file that does many things, right and wrong, and a way to open files of code."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dovetail.tensor import Array, TensorSpec
from runtime_svc.configuration.serving_config import ServingConfig
from runtime_svc.python_models.open_model import PythonModel, open_python_model
from runtime_svc.python_models.session import PythonSession

MANY_THINGS = """
import os, sys, time
import numpy as np
from dovetail.errors import InvalidInputError

class Model:
    def load(self, context):
        self.context = context
        self.kept = None

    def infer(self, request):
        op = request["op"].ravel()[0].decode()
        return getattr(self, op)(request)

    def double(self, request):
        return {"y": request["x"] * np.float32(2)}

    def identity(self, request):
        return {"y": request["x"]}

    def without(self, request):
        return {"y": np.full((request.rows, 1), float("x" in request), np.float32)}

    def fail(self, request):
        raise ValueError("no row 7\\nin the table")

    def refuse(self, request):
        raise InvalidInputError("too short")

    def wrong_dtype(self, request):
        return {"y": request["x"].astype(np.float64)}

    def wrong_shape(self, request):
        return {"y": np.zeros(3, np.float32)}

    def wrong_rows(self, request):
        return {"y": np.zeros((request.rows + 1, 1), np.float32)}

    def nothing(self, request):
        return None

    def no_output(self, request):
        return {}

    def other_output(self, request):
        return {"y": request["x"], "z": request["x"]}

    def yielding(self, request):
        def replies():
            yield {"y": request["x"]}
        return replies()

    def leave(self, request):
        os._exit(3)

    def keep(self, request):
        self.kept = request["x"]
        return {"y": request["x"][:, :1]}

    def keep_view(self, request):
        self.kept = request["x"].T[:2].T.reshape(-1, 2)[:, ::-1]
        return {"y": request["x"][:, :1]}

    def keep_memory(self, request):
        self.kept = np.asarray(memoryview(request["x"]))
        return {"y": request["x"][:, :1]}

    def keep_and_fail(self, request):
        self.kept = request["x"][:, 1:]
        raise ValueError("after all")

    def keep_request(self, request):
        self.request = request
        return {"y": request["x"][:, :1]}

    def request_first(self, request):
        return {"y": self.request["x"][:, :1]}

    def kept_first(self, request):
        return {"y": self.kept[:, :1]}

    def write(self, request):
        request["x"][:] = 5
        return {"y": request["x"]}

    def talk(self, request):
        print("a line", flush=True)
        print("to stderr", file=sys.stderr)
        for number in range(1000):
            print("x" * 5000)
        return {"y": request["x"]}

    def environment(self, request):
        return {"y": np.array([[float(name in os.environ)] for name in ("PATH", "DOVETAIL_REDIS_URL", "WANTED")],
                              np.float32)}

    def time_left(self, request):
        left = request.remaining_s
        return {"y": np.array([[-1.0 if left is None else left]], np.float32)}

    def sequences(self, request):
        rows = [[float(row.id), row.start, row.end, row.ready] for row in request.sequences]
        return {"y": np.array(rows, np.float32)}

    def until_cancelled(self, request):
        while not request.cancelled:
            time.sleep(0.001)
        return {"y": np.zeros((1, 1), np.float32)}

    def busy(self, request):
        import re
        re.match(r"(a+)+$", "a" * 40 + "b")  # for ever, and without giving anyone a turn
"""

INPUTS = (TensorSpec("op", "BYTES", (-1, 1)), TensorSpec("x", "FP32", (-1, -1)))
OUTPUTS = (TensorSpec("y", "FP32", (-1, -1)),)


def opened(
    folder: Path,
    code: str,
    *,
    inputs: tuple[TensorSpec, ...] = INPUTS,
    outputs: tuple[TensorSpec, ...] = OUTPUTS,
    max_batch_size: int = 8,
    on_change: Callable[[], None] = lambda: None,
    **config: object,
) -> PythonModel:
    folder.mkdir(exist_ok=True)
    (folder / "model.py").write_text(code)
    return open_python_model(
        folder, ServingConfig(**config), name="m", version=1, inputs=inputs, outputs=outputs,  # type: ignore[arg-type]
        max_batch_size=max_batch_size, on_change=on_change,
        environ={**os.environ, "DOVETAIL_REDIS_URL": "redis://:password@host", "WANTED": "1"},
    )  # fmt: skip


def do(session: PythonSession, op: str, x: Array | None = None) -> Array:
    rows = 1 if x is None else x.shape[0]
    feeds: dict[str, Array] = {"op": np.full((rows, 1), op.encode(), dtype=object)}
    if x is not None:
        feeds["x"] = x
    return session.run(feeds)["y"]


def floats(rows: int = 1, columns: int = 4) -> Array:
    return np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)


def wait_for(what: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Until something that another process or thread does is so."""
    deadline_s = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline_s, "it never came to be"
        time.sleep(0.005)
