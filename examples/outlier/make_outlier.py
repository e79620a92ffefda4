# SPDX-License-Identifier: Apache-2.0
"""Writes a model on which blanket int8 fails the accuracy gate, and two layers in float mend it.

The net is a stack of fully connected layers with ReLU. Between two of them a few channels are made a thousand times
louder, and the next layer's weights for them a thousand times smaller: ReLU lets the factor through, so in float the
net computes what it did before, while one 8-bit range for that tensor leaves nothing of its other channels. Trained
transformers have such channels too (Dettmers and others, "LLM.int8()", 2022).

Run `python examples/outlier/make_outlier.py DIRECTORY`, then push what it wrote with `dovetail push outlier
DIRECTORY/outlier.onnx --calibration DIRECTORY/calibration.npz --validation DIRECTORY/validation.npz`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LOUD_CHANNELS = 4
LOUDER = 1000.0
CLASSES = 10


def make_outlier(width: int = 1024, depth: int = 8, *, seed: int = 11) -> onnx.ModelProto:
    """The net: input `x` float32 (batch, width), output `scores` float32 (batch, 10), layers fc1 … and head.

    Args:
        width: Channels of every layer; its weights take 4 * width * width bytes.
        depth: Layers before the head; the loud tensor is between the two in the middle.
        seed: Of the weights.
    """
    random = np.random.default_rng(seed)
    shapes = [(width, width)] * depth + [(width, CLASSES)]
    weights = [(random.standard_normal(shape) * np.sqrt(2 / shape[0])).astype(np.float32) for shape in shapes]
    biases = [(0.1 * random.standard_normal(shape[1])).astype(np.float32) for shape in shapes]
    loud = depth // 2
    weights[loud - 1][:, :LOUD_CHANNELS] *= LOUDER
    biases[loud - 1][:LOUD_CHANNELS] *= LOUDER
    weights[loud][:LOUD_CHANNELS] /= LOUDER
    nodes, initializers, tensor = [], [], "x"
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True), start=1):
        last = number == len(weights)
        name, result = ("head", "scores") if last else (f"fc{number}", f"h{number}")
        initializers += [numpy_helper.from_array(weight, f"{name}_w"), numpy_helper.from_array(bias, f"{name}_b")]
        nodes.append(helper.make_node("Gemm", [tensor, f"{name}_w", f"{name}_b"], [result], name=name))
        tensor = result
        if not last:
            nodes.append(helper.make_node("Relu", [result], [f"r{number}"], name=f"relu{number}"))
            tensor = f"r{number}"
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "outlier",
        [value("x", TensorProto.FLOAT, ["batch", width])],
        [value("scores", TensorProto.FLOAT, ["batch", CLASSES])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def samples(count: int, width: int, *, seed: int) -> np.ndarray:
    """Inputs float32 (count, width) of different loudness."""
    random = np.random.default_rng(seed)
    return (random.uniform(0.5, 1.5, (count, 1)) * random.standard_normal((count, width))).astype(np.float32)


def write(directory: Path, width: int, depth: int) -> None:
    """Write outlier.onnx, calibration.npz and validation.npz."""
    directory.mkdir(parents=True, exist_ok=True)
    onnx.save(make_outlier(width, depth), str(directory / "outlier.onnx"))
    np.savez(directory / "calibration.npz", x=samples(64, width, seed=1))
    np.savez(directory / "validation.npz", x=samples(128, width, seed=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a model that needs mixed precision.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=8)
    chosen = parser.parse_args()
    write(chosen.directory, chosen.width, chosen.depth)
