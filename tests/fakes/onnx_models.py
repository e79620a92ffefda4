# SPDX-License-Identifier: Apache-2.0
"""Small real ONNX models and samples for tests of intake, backends and builds. Weights are seeded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def model_of(
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[Any],
    weights: list[Any] | None = None,
    *,
    opset: int = 17,
    ir_version: int = 8,
    domains: tuple[str, ...] = (),
) -> Any:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, weights or [])
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


def elementwise(op: str = "Relu", *, datatype: int = TensorProto.FLOAT, domain: str = "", opset: int = 17) -> Any:
    """One node over (batch, 2)."""
    node = helper.make_node(op, ["x"], ["y"], domain=domain)
    value = helper.make_tensor_value_info
    domains = (domain,) if domain else ()
    shape = ["batch", 2]
    return model_of([node], [value("x", datatype, shape)], [value("y", datatype, shape)], opset=opset, domains=domains)


def conv_net(*, channels: int = 8, batch: int | str = "batch", opset: int = 17) -> Any:
    """Two convolutions and a classifier over (batch, 1, 8, 8); some 5 KiB of weights."""
    random = np.random.default_rng(7)

    def weight(name: str, *shape: int) -> Any:
        fan_in = int(np.prod(shape[1:])) or 1
        return numpy_helper.from_array((random.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32), name)

    weights = [
        weight("w1", channels, 1, 3, 3),
        weight("b1", channels),
        weight("w2", channels, channels, 3, 3),
        weight("b2", channels),
        weight("w3", 10, channels),
        weight("b3", 10),
    ]
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["logits"], name="head", transB=1),
    ]
    value = helper.make_tensor_value_info
    inputs = [value("image", TensorProto.FLOAT, [batch, 1, 8, 8])]
    outputs = [value("logits", TensorProto.FLOAT, [batch, 10])]
    return model_of(nodes, inputs, outputs, weights, opset=opset)


def nan_model() -> Any:
    """Gives NaN for every negative input."""
    return elementwise("Sqrt")


def save(model: Any, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def images(count: int, *, seed: int = 1) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Images of different brightness and contrast, so that the logits differ between samples."""
    random = np.random.default_rng(seed)
    brightness = random.uniform(-1, 1, (count, 1, 1, 1))
    contrast = random.uniform(0.2, 1, (count, 1, 1, 1))
    return (brightness + contrast * random.uniform(-1, 1, (count, 1, 8, 8))).astype(np.float32)


def load(path: Path) -> Any:
    return onnx.load(str(path))
