# SPDX-License-Identifier: Apache-2.0
"""A small transformer block as ONNX, with samples: attention and a feed-forward part, as large models are made of.

Made in code rather than shipped: 130 KB of weights that anybody can read here. Weights are drawn from a fixed seed, so
every machine tests the same model, and two channels are louder than the others, as in trained ones (they are what makes
int8 hard). Needs the onnx package, which machines that build have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dovetail.errors import UnsupportedError
from dovetail.tensor import Array

TOKENS, WIDTH, HEADS, HIDDEN, CLASSES = 16, 64, 4, 128, 10
INPUT, OUTPUT = "tokens", "logits"
_OPSET, _IR_VERSION = 17, 8  # read by every runtime that this package supports
_LOUD = (3, 41)


def save_block(path: Path) -> None:
    """Write the model: float32 (batch, 16, 64) to float32 (batch, 10).

    Raises:
        UnsupportedError: The onnx package is not installed.
    """
    try:
        import onnx
    except ImportError as exc:
        raise UnsupportedError("the self-test makes its model with onnx: pip install 'dovetail[compiler]'") from exc
    path.write_bytes(_model(onnx.helper, onnx.numpy_helper).SerializeToString(deterministic=True))


def block_samples(count: int, *, seed: int) -> dict[str, Array]:
    """Inputs of different loudness: float32 (count, 16, 64)."""
    random = np.random.default_rng(seed)
    loudness = random.uniform(0.3, 1.5, (count, 1, 1))
    return {INPUT: (loudness * random.standard_normal((count, TOKENS, WIDTH))).astype(np.float32)}


def save_samples(path: Path, count: int, *, seed: int) -> None:
    """Write samples as .npz."""
    np.savez(path, **block_samples(count, seed=seed))  # type: ignore[arg-type]


def block_weights() -> dict[str, Array]:
    """Every weight by name, float32; matrices are (in, out)."""
    random = np.random.default_rng(11)

    def matrix(rows: int, columns: int) -> Array:
        return np.asarray(random.standard_normal((rows, columns)) / np.sqrt(rows), dtype=np.float32)

    weights = {name: matrix(WIDTH, WIDTH) for name in ("query", "key", "value", "projection")}
    weights |= {"up": matrix(WIDTH, HIDDEN), "down": matrix(HIDDEN, WIDTH), "head": matrix(WIDTH, CLASSES)}
    gain = np.ones(WIDTH, np.float32)
    gain[list(_LOUD)] = 3.0
    weights |= {"gain_1": gain, "gain_2": gain, "bias_1": np.zeros(WIDTH, np.float32)}
    weights["bias_2"] = np.zeros(WIDTH, np.float32)
    return weights


def _model(helper: Any, numpy_helper: Any) -> Any:
    constants = {
        **block_weights(),
        "split_heads": np.array([0, TOKENS, HEADS, WIDTH // HEADS], np.int64),
        "join_heads": np.array([0, TOKENS, WIDTH], np.int64),
        "scale": np.array(1 / np.sqrt(WIDTH / HEADS), np.float32),
        "half": np.array(0.5, np.float32),
        "one": np.array(1.0, np.float32),
        "root_half": np.array(np.sqrt(0.5), np.float32),
    }
    graph = helper.make_graph(
        [*_attention(helper.make_node), *_feed_forward(helper.make_node)],
        "transformer_block",
        [helper.make_tensor_value_info(INPUT, 1, ["batch", TOKENS, WIDTH])],
        [helper.make_tensor_value_info(OUTPUT, 1, ["batch", CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)


def _attention(node: Any) -> list[Any]:
    found = [node("LayerNormalization", [INPUT, "gain_1", "bias_1"], ["n1"], name="norm_1", axis=-1)]
    for name, order in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
        found += [
            node("MatMul", ["n1", name], [f"{name}_flat"], name=name),
            node("Reshape", [f"{name}_flat", "split_heads"], [f"{name}_split"], name=f"{name}_split"),
            node("Transpose", [f"{name}_split"], [f"{name}_heads"], name=f"{name}_turn", perm=order),
        ]
    return [
        *found,
        node("MatMul", ["query_heads", "key_heads"], ["scores"], name="scores"),
        node("Mul", ["scores", "scale"], ["scaled"], name="scaling"),
        node("Softmax", ["scaled"], ["shares"], name="softmax", axis=-1),
        node("MatMul", ["shares", "value_heads"], ["mixed"], name="mix"),
        node("Transpose", ["mixed"], ["turned"], name="turn_back", perm=[0, 2, 1, 3]),
        node("Reshape", ["turned", "join_heads"], ["joined"], name="join"),
        node("MatMul", ["joined", "projection"], ["projected"], name="projecting"),
        node("Add", ["projected", INPUT], ["r1"], name="residual_1"),
    ]


def _feed_forward(node: Any) -> list[Any]:
    return [
        node("LayerNormalization", ["r1", "gain_2", "bias_2"], ["n2"], name="norm_2", axis=-1),
        node("MatMul", ["n2", "up"], ["wide"], name="up_product"),
        node("Mul", ["wide", "root_half"], ["wide_scaled"], name="gelu_scale"),
        node("Erf", ["wide_scaled"], ["erf"], name="gelu_erf"),
        node("Add", ["erf", "one"], ["erf_one"], name="gelu_one"),
        node("Mul", ["wide", "erf_one"], ["gated"], name="gelu_gate"),
        node("Mul", ["gated", "half"], ["active"], name="gelu_half"),
        node("MatMul", ["active", "down"], ["narrow"], name="down_product"),
        node("Add", ["narrow", "r1"], ["r2"], name="residual_2"),
        node("ReduceMean", ["r2"], ["pooled"], name="pool", axes=[1], keepdims=0),
        node("MatMul", ["pooled", "head"], [OUTPUT], name="classify"),
    ]
