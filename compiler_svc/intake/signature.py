# SPDX-License-Identifier: Apache-2.0
"""Inputs and outputs of an ONNX graph as the protocol's tensors, and the refusal of those that it cannot carry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx

from dovetail.errors import InvalidInputError, UnsupportedError
from dovetail.tensor import TensorSpec

MAX_NAME_CHARS = 512

_DATATYPES: Mapping[int, str] = {
    onnx.TensorProto.BOOL: "BOOL",
    onnx.TensorProto.UINT8: "UINT8",
    onnx.TensorProto.UINT16: "UINT16",
    onnx.TensorProto.UINT32: "UINT32",
    onnx.TensorProto.UINT64: "UINT64",
    onnx.TensorProto.INT8: "INT8",
    onnx.TensorProto.INT16: "INT16",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.FLOAT16: "FP16",
    onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.FLOAT: "FP32",
    onnx.TensorProto.DOUBLE: "FP64",
    onnx.TensorProto.STRING: "BYTES",
}


def signature(model: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs (weights that are listed as inputs left out) and outputs, after shape inference.

    Raises:
        InvalidInputError: There are none, a name is empty, too long or used twice, or a dimension is 0.
        UnsupportedError: A type is no tensor of the protocol, or a rank is unknown.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_spec(value, "input") for value in model.graph.input if value.name not in weights)
    outputs = tuple(_spec(value, "output") for value in model.graph.output)
    for specs, what in ((inputs, "input"), (outputs, "output")):
        if not specs:
            raise InvalidInputError(f"the model has no {what}; a model to serve needs at least one")
        if len({spec.name for spec in specs}) != len(specs):
            raise InvalidInputError(f"the model has two {what}s of one name")
    return inputs, outputs


def _spec(value: Any, what: str) -> TensorSpec:
    if not 0 < len(value.name) <= MAX_NAME_CHARS or not value.name.isprintable():
        raise InvalidInputError(f"{what} name {value.name[:80]!r} is empty, too long or not printable")
    if not value.type.HasField("tensor_type"):
        raise UnsupportedError(
            f"{what} {value.name!r} is a {value.type.WhichOneof('value')}; only dense tensors can be served"
        )
    tensor = value.type.tensor_type
    datatype = _DATATYPES.get(tensor.elem_type)
    if datatype is None:
        name = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise UnsupportedError(f"{what} {value.name!r} has type {name}; the inference protocol has no such type")
    if not tensor.HasField("shape"):
        raise UnsupportedError(f"{what} {value.name!r} has no known rank; export the model with the shape declared")
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)
    if 0 in shape:
        raise InvalidInputError(
            f"{what} {value.name!r} has shape {list(shape)}, which holds no element, so nothing could be judged or"
            " measured; export the model with that dimension free or positive"
        )
    return TensorSpec(value.name, datatype, shape)
