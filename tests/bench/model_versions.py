# SPDX-License-Identifier: Apache-2.0
"""Second versions of a model, as their bytes look after the usual kinds of training.

Training changes every byte of a weight that it touches and none of the others, whatever the size of the step; so a
weight that was trained is one with noise of a thousandth of its spread. What grows shifts what comes after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

Version = Callable[[onnx.ModelProto], None]


def head(model: onnx.ModelProto) -> None:
    """Only the last matrix and its bias were trained."""
    large = [tensor for tensor in _weights(model) if len(tensor.dims) > 1]
    _train(list(_weights(model))[list(_weights(model)).index(large[-1]) :])


def last_quarter(model: onnx.ModelProto) -> None:
    """The last layers were trained, with a quarter of the weights' bytes."""
    weights = list(_weights(model))
    total = sum(len(tensor.raw_data) for tensor in weights)
    seen = 0
    for tensor in reversed(weights):
        if seen >= total / 4:
            return
        _train([tensor])
        seen += len(tensor.raw_data)


def grown(model: onnx.ModelProto) -> None:
    """The last layers were trained, and something before the weights got longer: all offsets move by 1234 bytes."""
    last_quarter(model)
    model.graph.doc_string = ""
    first = next(iter(_weights(model)))
    at = [tensor.name for tensor in model.graph.initializer].index(first.name)
    filler = numpy_helper.from_array(
        np.random.default_rng(7).standard_normal(308).astype(np.float32), "dovetail.filler"
    )
    kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in model.graph.initializer]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept[:at], filler, *kept[at:]])
    model.graph.node.append(onnx.helper.make_node("Identity", ["dovetail.filler"], ["dovetail.filler.out"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("dovetail.filler.out", onnx.TensorProto.FLOAT, [308]))


VERSIONS: dict[str, Version] = {
    "head trained": head,
    "last quarter trained": last_quarter,
    "last quarter, shifted": grown,
}


def second(model: onnx.ModelProto, version: Version) -> onnx.ModelProto:
    """A copy of the model, changed."""
    other = onnx.ModelProto.FromString(model.SerializeToString())
    version(other)
    return other


def _weights(model: onnx.ModelProto) -> Sequence[onnx.TensorProto]:
    return [
        tensor
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.raw_data and np.prod(tensor.dims) > 1
    ]


def _train(tensors: Sequence[onnx.TensorProto]) -> None:
    noise = np.random.default_rng(len(tensors))
    for tensor in tensors:
        array = numpy_helper.to_array(tensor)
        step = noise.standard_normal(array.shape).astype(np.float32) * np.float32(array.std() * 1e-3)
        tensor.CopyFrom(numpy_helper.from_array(array + step, tensor.name))
