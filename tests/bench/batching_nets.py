# SPDX-License-Identifier: Apache-2.0
"""Nets for the batching benches, made on the spot: their weights are noise, their operators and cost are real.

ResNet-50 has its batch normalisations folded already, as every engine does first. Weights are scaled so that
activations stay finite through all layers, because denormal and infinite numbers cost other times than usual ones.

Source: He et al. 2015, "Deep Residual Learning for Image Recognition", table 1; Wang et al. 2020, "MiniLM" (6 layers,
384 wide, 12 heads); Devlin et al. 2018, "BERT" (the block).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 8
SIDE, CLASSES = 224, 1000
STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
"""Width, blocks and stride of the first block."""

VOCABULARY = 8192
TOKENS, WIDTH, LAYERS, HEADS = 128, 384, 6, 12

Shape = list[str | int]


class _Net:
    """A graph under construction; names are numbers."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def add(self, kind: str, *inputs: str, **attributes: object) -> str:
        """A node; the name of its output."""
        output = f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def keep(self, values: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        """A constant."""
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def noise(self, *shape: int, fan_in: int, gain: float = 1.0) -> str:
        """A weight."""
        return self.keep(self._random.normal(0, np.sqrt(gain / fan_in), shape))

    def save(self, path: Path, inputs: dict[str, tuple[int, Shape]], output: str, shape: Shape) -> Path:
        """Write it; `inputs` have element types and shapes."""
        self._nodes[-1].output[0] = output
        graph = helper.make_graph(
            self._nodes,
            "net",
            [helper.make_tensor_value_info(name, kind, dims) for name, (kind, dims) in inputs.items()],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
            self._weights,
        )
        opset = [helper.make_opsetid("", OPSET)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION), path)
        return path


def write_resnet50(path: Path) -> Path:
    """ResNet-50: image (batch, 3, 224, 224) to logits (batch, 1000), 4.1 billion multiplications for a row."""
    net = _Net(1)

    def conv(x: str, inputs: int, outputs: int, size: int, stride: int = 1) -> str:
        weight = net.noise(outputs, inputs, size, size, fan_in=inputs * size * size)
        bias = net.keep(np.full(outputs, 0.01))
        return net.add("Conv", x, weight, bias, pads=[size // 2] * 4, strides=[stride, stride])

    x = net.add("Relu", conv("image", 3, 64, 7, 2))
    x, channels = net.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4), 64
    for width, blocks, stride in STAGES:
        for block in range(blocks):
            step = stride if block == 0 else 1
            body = net.add("Relu", conv(x, channels, width, 1))
            body = net.add("Relu", conv(body, width, width, 3, step))
            body = conv(body, width, 4 * width, 1)
            shortcut = conv(x, channels, 4 * width, 1, step) if block == 0 else x
            x, channels = net.add("Relu", net.add("Add", body, shortcut)), 4 * width
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    net.add("Gemm", x, net.noise(channels, CLASSES, fan_in=channels), net.keep(np.zeros(CLASSES)))
    return net.save(path, {"image": (TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])}, "logits", ["batch", CLASSES])


def write_minilm(path: Path, *, tokens: int = TOKENS, layers: int = LAYERS) -> Path:
    """MiniLM-L6: input_ids and attention_mask (batch, tokens) to embedding (batch, 384)."""
    net = _Net(2)
    one, zero = net.keep(np.ones(WIDTH)), net.keep(np.zeros(WIDTH))

    def dense(x: str, inputs: int, outputs: int) -> str:
        product = net.add("MatMul", x, net.noise(inputs, outputs, fan_in=inputs))
        return net.add("Add", product, net.keep(np.zeros(outputs)))

    def heads(x: str, order: list[int]) -> str:
        split = net.add("Reshape", x, net.keep([0, 0, HEADS, WIDTH // HEADS], np.int64))
        return net.add("Transpose", split, perm=order)

    mask = net.add("Cast", "attention_mask", to=TensorProto.FLOAT)
    mask = net.add("Unsqueeze", mask, net.keep([1, 2], np.int64))
    mask = net.add("Mul", net.add("Sub", net.keep(1.0), mask), net.keep(-1e4))
    words = net.add("Gather", net.noise(VOCABULARY, WIDTH, fan_in=1), "input_ids")
    x = net.add("Add", words, net.noise(1, tokens, WIDTH, fan_in=1))
    x = net.add("LayerNormalization", x, one, zero)
    for _ in range(layers):
        q, v = (heads(dense(x, WIDTH, WIDTH), [0, 2, 1, 3]) for _ in range(2))
        k = heads(dense(x, WIDTH, WIDTH), [0, 2, 3, 1])
        scores = net.add("Div", net.add("MatMul", q, k), net.keep(np.sqrt(WIDTH / HEADS)))
        seen = net.add("MatMul", net.add("Softmax", net.add("Add", scores, mask), axis=-1), v)
        seen = net.add("Reshape", net.add("Transpose", seen, perm=[0, 2, 1, 3]), net.keep([0, 0, WIDTH], np.int64))
        x = net.add("LayerNormalization", net.add("Add", dense(seen, WIDTH, WIDTH), x), one, zero)
        inner = dense(x, WIDTH, 4 * WIDTH)
        error = net.add("Add", net.add("Erf", net.add("Div", inner, net.keep(np.sqrt(2)))), net.keep(1.0))
        gelu = net.add("Mul", net.add("Mul", inner, error), net.keep(0.5))
        x = net.add("LayerNormalization", net.add("Add", dense(gelu, 4 * WIDTH, WIDTH), x), one, zero)
    net.add("ReduceMean", x, axes=[1], keepdims=0)
    ids: tuple[int, Shape] = (TensorProto.INT64, ["batch", tokens])
    return net.save(path, {"input_ids": ids, "attention_mask": ids}, "embedding", ["batch", WIDTH])


def write_tiny(path: Path) -> Path:
    """16 inputs, 4 outputs: all that takes time is everything else."""
    net = _Net(3)
    net.add("MatMul", "x", net.keep(np.ones((16, 4))))
    return net.save(path, {"x": (TensorProto.FLOAT, ["batch", 16])}, "y", ["batch", 4])
