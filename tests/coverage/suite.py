# SPDX-License-Identifier: Apache-2.0
"""The test cases that the onnx package carries for back ends, in one form: a model, inputs, expected outputs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "real")


@dataclass(frozen=True, slots=True)
class Case:
    """One case.

    Attributes:
        kind: Folder of the suite; "real" are the light models (real graphs with constant weights).
        name: Such as "test_conv_with_strides_padding".
        model: Parsed model.
        inputs: Input name -> value; not always an array.
        outputs: Output name -> what the suite expects.
        rtol: Relative tolerance of the suite.
        atol: Absolute tolerance.
    """

    kind: str
    name: str
    model: Any
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    rtol: float
    atol: float


def load_cases() -> Mapping[str, Any]:
    """ "kind/name" -> the package's own description of the case; cheap to list, read with `read_case`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with np.errstate(all="ignore"):
            return {f"{kind}/{case.name}": case for kind in KINDS for case in load_model_tests(kind=kind)}


def read_case(key: str, described: Any) -> Case:
    """Model and first data set of a case."""
    kind = key.partition("/")[0]
    if kind == "real":
        return _light(described)
    if described.model is not None:
        model = described.model
        inputs, outputs = described.data_sets[0]
    else:
        folder = Path(described.model_dir)
        model = onnx.load(folder / "model.onnx")
        inputs, outputs = (
            _values(folder / "test_data_set_0", what, getattr(model.graph, what)) for what in ("input", "output")
        )
    return Case(kind, described.name, model, _named(_free_inputs(model), inputs), _named(model.graph.output, outputs),
                described.rtol, described.atol)  # fmt: skip


def _light(described: Any) -> Case:
    path = Path(onnx.__file__).parents[1] / described.url
    model = onnx.load(path)
    inputs = {item.name: _dummy(item) for item in _free_inputs(model)}
    outputs = {}
    for index, item in enumerate(model.graph.output):
        tensor = onnx.TensorProto.FromString(path.with_name(f"{path.stem}_output_{index}.pb").read_bytes())
        outputs[item.name] = numpy_helper.to_array(tensor)
    return Case("real", described.name, model, inputs, outputs, described.rtol, described.atol)


def _dummy(item: Any) -> Any:
    """The input that the suite's runner gives its light models: rising from 0 to 1."""
    shape = tuple(dim.dim_value for dim in item.type.tensor_type.shape.dim)
    count = int(np.prod(shape))
    return (np.arange(count).reshape(shape) / count).astype(np.float32)


def _free_inputs(model: Any) -> Sequence[Any]:
    weights = {tensor.name for tensor in model.graph.initializer}
    return [item for item in model.graph.input if item.name not in weights]


def _values(folder: Path, what: str, described: Sequence[Any]) -> list[Any]:
    found = []
    for index, path in enumerate(sorted(folder.glob(f"{what}_*.pb"), key=lambda path: int(path.stem.split("_")[1]))):
        kind = described[index].type.WhichOneof("value") if index < len(described) else "tensor_type"
        if kind == "sequence_type":
            found.append(numpy_helper.to_list(onnx.SequenceProto.FromString(path.read_bytes())))
        elif kind == "optional_type":
            found.append(numpy_helper.to_optional(onnx.OptionalProto.FromString(path.read_bytes())))
        else:
            found.append(numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes())))
    return found


def _named(described: Sequence[Any], values: Sequence[Any]) -> dict[str, Any]:
    return {item.name: value for item, value in zip(described, values, strict=False)}
