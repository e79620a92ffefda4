# SPDX-License-Identifier: Apache-2.0
"""What every server serves: a small network, whose cost is the server's, and an identity for large tensors.

python -m tests.bench.serving.models FOLDER    writes FOLDER/<model>.onnx
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

MLP, LARGE = "mlp", "large"
MLP_MAX_BATCH, LARGE_MAX_BATCH = 64, 8
FEATURES, HIDDEN, CLASSES = 16, 16, 4
LARGE_BYTES = 1 << 20


def write_models(folder: Path) -> None:
    """Write both."""
    rng = np.random.default_rng(0)
    weights = {
        "w0": rng.standard_normal((FEATURES, HIDDEN)),
        "b0": rng.standard_normal(HIDDEN),
        "w1": rng.standard_normal((HIDDEN, CLASSES)),
        "b1": rng.standard_normal(CLASSES),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w1", "b1"], ["y"]),
    ]
    initial = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    _write(folder / f"{MLP}.onnx", nodes, FEATURES, CLASSES, initial)
    _write(folder / f"{LARGE}.onnx", [helper.make_node("Identity", ["x"], ["y"])], None, None, [])


def answer_of_mlp(folder: Path, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What the small network gives, computed without a runtime."""
    model = onnx.load(folder / f"{MLP}.onnx")
    w0, b0, w1, b1 = (numpy_helper.to_array(tensor) for tensor in model.graph.initializer)
    return np.asarray(np.maximum(x @ w0 + b0, 0) @ w1 + b1, dtype=np.float32)


def _write(
    path: Path,
    nodes: list[onnx.NodeProto],
    columns_in: int | None,
    columns_out: int | None,
    initial: list[onnx.TensorProto],
) -> None:
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", columns])
        for name, columns in (("x", columns_in), ("y", columns_out))
    ]
    graph = helper.make_graph(nodes, path.stem, infos[:1], infos[1:], initial)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8), path)


if __name__ == "__main__":
    write_models(Path(sys.argv[1]))
