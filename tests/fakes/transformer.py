# SPDX-License-Identifier: Apache-2.0
"""Small transformer blocks as ONNX, with seeded weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.fakes.onnx_models import model_of

WIDTH = 32
TOKENS = 8
MASKED = -1e9
"""Beyond fp16's range, as in many exported attention masks."""


def transformer_block(*, opset: int = 20, gain: float = 1.0) -> Any:
    """x and mask (batch, TOKENS) to y (batch, TOKENS, WIDTH): masked attention with a large constant, GELU.

    Args:
        opset: Of ai.onnx; Gelu needs 20.
        gain: Multiplies the feed-forward part's first weights, so that its activations can be made large.
    """
    random = np.random.default_rng(11)

    def weight(name: str, rows: int, columns: int, factor: float = 1.0) -> Any:
        values = factor * random.standard_normal((rows, columns)) / np.sqrt(rows)
        return numpy_helper.from_array(values.astype(np.float32), name)

    def constant(name: str, values: Any) -> Any:
        return numpy_helper.from_array(np.asarray(values, np.float32), name)

    weights = [weight(name, WIDTH, WIDTH) for name in ("wq", "wk", "wv", "wo")]
    weights += [weight("w1", WIDTH, 2 * WIDTH, gain), weight("w2", 2 * WIDTH, WIDTH, 1 / gain)]
    weights += [constant("gamma", np.ones(WIDTH)), constant("beta", np.zeros(WIDTH))]
    weights += [constant("scale", WIDTH**-0.5), constant("one", 1.0), constant("masked", MASKED)]
    weights.append(numpy_helper.from_array(np.asarray([1], np.int64), "axis"))
    node = helper.make_node
    nodes = [
        *_scores(),
        node("Mul", ["s", "scale"], ["sc"], name="scaled"),
        node("Sub", ["one", "mask"], ["away"], name="away"),
        node("Mul", ["away", "masked"], ["bias"], name="bias"),
        node("Unsqueeze", ["bias", "axis"], ["bias3"], name="widen"),
        node("Add", ["sc", "bias3"], ["sm"], name="hide"),
        node("Softmax", ["sm"], ["p"], name="softmax", axis=-1),
        node("MatMul", ["p", "v"], ["a"], name="mix"),
        node("MatMul", ["a", "wo"], ["o"], name="project"),
        node("Add", ["o", "x"], ["r"], name="residual"),
        node("MatMul", ["r", "w1"], ["h"], name="widening"),
        node("Gelu", ["h"], ["g"], name="gelu"),
        node("MatMul", ["g", "w2"], ["f"], name="narrowing"),
        node("Add", ["f", "r"], ["y"], name="out"),
    ]
    value = helper.make_tensor_value_info
    inputs = [
        value("x", TensorProto.FLOAT, ["batch", TOKENS, WIDTH]),
        value("mask", TensorProto.FLOAT, ["batch", TOKENS]),
    ]
    return model_of(nodes, inputs, [value("y", TensorProto.FLOAT, ["batch", TOKENS, WIDTH])], weights, opset=opset)


def outlier_block() -> Any:
    """x to y, both (batch, TOKENS, WIDTH), without mask and GELU; two channels have outliers, as trained ones do."""
    random = np.random.default_rng(3)

    def tensor(name: str, *shape: int) -> Any:
        values = random.standard_normal(shape) / np.sqrt(shape[0]) * (0.1 if name in ("wq", "wk") else 1)
        return numpy_helper.from_array(values.astype(np.float32), name)

    gamma = np.ones(WIDTH, np.float32)
    gamma[[3, 17]] = 8
    weights = [tensor(name, WIDTH, WIDTH) for name in ("wq", "wk", "wv", "wf")]
    weights += [numpy_helper.from_array(gamma, "gamma"), numpy_helper.from_array(np.zeros(WIDTH, np.float32), "beta")]
    node = helper.make_node
    nodes = [
        *_scores(),
        node("Softmax", ["s"], ["p"], name="softmax", axis=-1),
        node("MatMul", ["p", "v"], ["a"], name="mix"),
        node("Add", ["a", "x"], ["r"], name="residual"),
        node("MatMul", ["r", "wf"], ["f"], name="forward"),
        node("Add", ["f", "r"], ["y"], name="out"),
    ]
    value = helper.make_tensor_value_info
    shape = ["batch", TOKENS, WIDTH]
    return model_of(nodes, [value("x", 1, shape)], [value("y", 1, shape)], weights)


def _scores() -> list[Any]:
    """From x to attention's scores s, and its values v."""
    node = helper.make_node
    return [
        node("LayerNormalization", ["x", "gamma", "beta"], ["n"], name="norm", axis=-1),
        node("MatMul", ["n", "wq"], ["q"], name="query"),
        node("MatMul", ["n", "wk"], ["k"], name="key"),
        node("MatMul", ["n", "wv"], ["v"], name="value"),
        node("Transpose", ["k"], ["kt"], name="turn", perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["s"], name="scores"),
    ]


def token_samples(count: int, *, seed: int = 1) -> dict[str, Any]:
    """Samples for `transformer_block`; the last two tokens of every other one are masked."""
    random = np.random.default_rng(seed)
    mask = np.ones((count, TOKENS), np.float32)
    mask[::2, -2:] = 0
    return {"x": random.standard_normal((count, TOKENS, WIDTH)).astype(np.float32), "mask": mask}
