# SPDX-License-Identifier: Apache-2.0
"""Tiny artifacts that each answer with a number of their own, so that an answer tells which artifact gave it.

They pass for the digits model, a linear layer of 3 KB instead of the real one, so that hundreds of nodes can load them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dovetail.engines import SessionOptions, create_engine
from dovetail.engines.goldens import Golden, Goldens, write_goldens
from dovetail.tensor import TensorSpec
from tests.fakes.tiny_artifacts import DigitsArtifact, manifest_of, random_bytes

INPUTS = (TensorSpec("image", "FP32", (-1, 1, 8, 8)),)
OUTPUTS = (TensorSpec("logits", "FP32", (-1, 10)),)
IMAGE = np.full((1, 1, 8, 8), 0.5, dtype=np.float32)


def answering(
    number: int, *, version: int = 1, model: str = "digits", padding_bytes: int = 0, chunk_bytes: int = 4096
) -> DigitsArtifact:
    """An artifact whose answers are `answer(number)`.

    Args:
        number: What makes it different from others.
        version: Model version.
        model: Model name.
        padding_bytes: Size of a further file that no engine reads; different for each number.
        chunk_bytes: Size of the chunks.
    """
    files = {"model.onnx": _model_bytes(number), "goldens.npz": _goldens_bytes(number)}
    if padding_bytes:
        files["padding.bin"] = random_bytes(padding_bytes, number)
    manifest = manifest_of(files, model=model, version=version, chunk_bytes=chunk_bytes, inputs=INPUTS, outputs=OUTPUTS)
    return DigitsArtifact(manifest, files)


def answer(number: int) -> np.ndarray:  # type: ignore[type-arg]
    """What that artifact says to IMAGE."""
    return IMAGE.reshape(1, 64) @ _weights() + np.float32(number)


def who_answered(logits: np.ndarray, numbers: Iterable[int]) -> int:  # type: ignore[type-arg]
    """Which of the artifacts gave that answer to IMAGE.

    Raises:
        AssertionError: None of them: the answer is wrong.
    """
    for number in numbers:
        if logits.shape == (1, 10) and np.allclose(logits, answer(number), atol=1e-3):
            return number
    raise AssertionError(f"no artifact answers {logits.tolist()}")


@cache
def _weights() -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(0).standard_normal((64, 10)).astype(np.float32) / 8


@cache
def _model_bytes(number: int) -> bytes:
    nodes = [
        helper.make_node("Reshape", ["image", "flat"], ["pixels"]),
        helper.make_node("Gemm", ["pixels", "weight", "bias"], ["logits"]),
    ]
    constants = {
        "flat": np.array([-1, 64], np.int64),
        "weight": _weights(),
        "bias": np.full(10, number, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


@cache
def _goldens_bytes(number: int) -> bytes:
    images = np.random.default_rng(1).random((2, 1, 1, 8, 8), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(_model_bytes(number))
        session = create_engine("onnxruntime").load({"model.onnx": path}, SessionOptions(threads=1, optimize=False))
        runs = tuple(Golden({"image": image}, session.run({"image": image})) for image in images)
        goldens = Path(folder) / "goldens.npz"
        write_goldens(goldens, Goldens("fp32", session.inputs, session.outputs, runs))
        session.close()
        return goldens.read_bytes()
