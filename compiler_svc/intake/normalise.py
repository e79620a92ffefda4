# SPDX-License-Identifier: Apache-2.0
"""Gives a checked model one form: no texts that change nothing, weights as raw bytes in name order, shapes inferred.

Two files with one model digest become (nearly always) one file, and every later step sees only this form.
"""

from __future__ import annotations

from typing import Any

import onnx

from compiler_svc.intake import graph
from compiler_svc.intake.external_data import stored_bytes
from dovetail.errors import InvalidInputError

_RAW_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")


def normalise(model: Any) -> Any:
    """The normal form; the argument is used up.

    Raises:
        InvalidInputError: Shapes contradict each other, or tensor data does not fit its shape.
    """
    _drop_texts(model)
    for level in graph.graphs(model):
        weights = {tensor.name for tensor in level.initializer}
        _keep(level.input, [value for value in level.input if value.name not in weights])
        _keep(level.initializer, sorted(level.initializer, key=lambda tensor: tensor.name))
        level.ClearField("value_info")
    _name_nodes(model.graph)
    for tensor in graph.tensors(model):
        _to_raw(tensor)
    try:
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=False, data_prop=True)
    except Exception as exc:  # InferenceError is not public, and broken tensors raise others
        raise InvalidInputError(f"shapes or types of the model contradict each other: {_short(exc)}") from exc


def check(model: Any) -> None:
    """Run onnx's own checker.

    Args:
        model: A parsed model, or the path of one whose weights are in a file beside it.

    Raises:
        InvalidInputError: The model breaks the ONNX specification.
    """
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as exc:
        raise InvalidInputError(f"the model is not valid ONNX: {_short(exc)}") from exc


def _name_nodes(level: Any) -> None:
    """Name the nameless nodes of the main graph after what they write, since recipes name nodes."""
    taken = {node.name for node in level.node}
    for node in level.node:
        written = next((name for name in node.output if name), "")
        if not node.name and written and f"{node.op_type}:{written}" not in taken:
            node.name = f"{node.op_type}:{written}"


def _drop_texts(model: Any) -> None:
    for field_name in ("doc_string", "producer_name", "producer_version", "domain", "model_version", "metadata_props"):
        model.ClearField(field_name)
    for level in graph.graphs(model):
        level.ClearField("doc_string")
        _clear_metadata(level)
        for value in (*level.input, *level.output):
            value.ClearField("doc_string")
            _clear_metadata(value)
    for item in (*graph.nodes(model), *graph.tensors(model), *model.functions):
        item.ClearField("doc_string")
        _clear_metadata(item)


def _clear_metadata(item: Any) -> None:
    if "metadata_props" in item.DESCRIPTOR.fields_by_name:
        item.ClearField("metadata_props")


def _keep(field: Any, items: list[Any]) -> None:
    copies = [type(item).FromString(item.SerializeToString()) for item in items]
    del field[:]
    field.extend(copies)


def _to_raw(tensor: Any) -> None:
    if tensor.data_type == onnx.TensorProto.STRING or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return
    if not any(len(getattr(tensor, name)) for name in _RAW_FIELDS):
        if len(tensor.raw_data) != stored_bytes(tensor):
            raise InvalidInputError(
                f"tensor {tensor.name!r} holds {len(tensor.raw_data)} bytes, its shape {list(tensor.dims)} and type"
                f" need {stored_bytes(tensor)}; the file is damaged"
            )
        return
    try:
        packed = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name)
    except Exception as exc:  # numpy and ml_dtypes raise what they like for data that does not fit
        raise InvalidInputError(
            f"tensor {tensor.name!r} holds data that does not fit its shape: {_short(exc)}"
        ) from exc
    for name in _RAW_FIELDS:
        tensor.ClearField(name)
    tensor.raw_data = packed.raw_data


def _short(exc: Exception) -> str:
    return " ".join(str(exc).split())[:400]
