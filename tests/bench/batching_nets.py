# SPDX-License-Identifier: Apache-2.0
"""Nets for the batching bench, made on the spot: their weights are noise, their cost is real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 16, 8


def write_convolutions(path: Path, *, channels: int = 64, layers: int = 12, side: int = 56) -> Path:
    """A stack of 3x3 convolutions over (batch, channels, side, side): about 0.12 GFLOP a layer and row by default."""
    rng = np.random.default_rng(1)
    nodes, weights, last = [], [], "x"
    for layer in range(layers):
        kernel = rng.normal(0, 0.04, (channels, channels, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{layer}"))
        nodes.append(helper.make_node("Conv", [last, f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]))
        last = "y" if layer == layers - 1 else f"r{layer}"
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [last]))
    return _save(path, nodes, weights, ["batch", channels, side, side])


def write_encoder(path: Path, *, width: int = 384, length: int = 128, layers: int = 6) -> Path:
    """The matrix products of a small text encoder's feed-forward blocks, over (batch, length, width)."""
    rng = np.random.default_rng(2)
    nodes, weights, last = [], [], "x"
    for layer in range(layers):
        for name, shape in (("up", (width, 4 * width)), ("down", (4 * width, width))):
            values = rng.normal(0, 1 / np.sqrt(shape[0]), shape).astype(np.float32)
            weights.append(numpy_helper.from_array(values, f"{name}{layer}"))
        nodes += [
            helper.make_node("MatMul", [last, f"up{layer}"], [f"h{layer}"]),
            helper.make_node("Relu", [f"h{layer}"], [f"a{layer}"]),
            helper.make_node("MatMul", [f"a{layer}", f"down{layer}"], [f"d{layer}"]),
            helper.make_node("Add", [f"d{layer}", last], ["y" if layer == layers - 1 else f"s{layer}"]),
        ]
        last = f"s{layer}"
    return _save(path, nodes, weights, ["batch", length, width])


def write_tiny(path: Path) -> Path:
    """16 inputs, 4 outputs: all that takes time is everything else."""
    weights = [numpy_helper.from_array(np.ones((16, 4), np.float32), "w")]
    return _save(path, [helper.make_node("MatMul", ["x", "w"], ["y"])], weights, ["batch", 16], ["batch", 4])


def write_int8(source: Path, path: Path) -> Path:
    """The same net with int8 weights, quantized as it runs; needs nothing but the net."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, path, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"])
    return path


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: list[onnx.TensorProto],
    shape: list[str | int],
    result: list[str | int] | None = None,
) -> Path:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, result or shape)]
    graph = helper.make_graph(nodes, "net", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.save(model, path)
    return path
