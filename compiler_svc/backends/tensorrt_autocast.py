# SPDX-License-Identifier: Apache-2.0
"""Chooses which nodes of a graph can be computed in fp16 or bf16, with a reason for each that cannot.

A strongly typed network computes what its graph says, so the choice is made here, as NVIDIA ModelOpt's AutoCast makes
it: by value ranges seen on samples and in the weights, and by operators that lose their meaning. What lives here is the
choice; the graph is rewritten by `tensorrt_casts`. Pure: reads a graph and numbers.

Rules, first match decides:

* a node that the recipe excludes (the search for sensitive layers fills that) stays in fp32;
* control flow, other operator domains, and operators that have no form in the type;
* operators that sum many values or stretch small differences (`SENSITIVE`);
* a weight beyond the type's range, or one that rounding changes by more than a hundredth of its norm, which is what
  happens to values too small for fp16 (bf16 has fp32's range);
* a value beyond `data_max` seen on the samples;
* a cheap node whose float neighbours all stay in fp32: two casts cost more than it saves.

Source: NVIDIA ModelOpt, modelopt/onnx/autocast (nodeclassifier.py, convert.py, precisionconverter.py: rules on ranges
of data and initializers, least opset 22 for bfloat16, operators without a low precision form); ONNX operator schemas
for the types that each operator takes. The list of sensitive operators and the bound on rounding are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler_svc.backends.onnxruntime_nodes import HEAVY
from compiler_svc.backends.tensorrt_graph import tensor_types
from dovetail.tensor import Array

LOW_TYPES: Mapping[str, str] = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}
"""Precision -> the type's name in operator schemas."""

SENSITIVE = frozenset(
    {
        "Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization", "InstanceNormalization",
        "GroupNormalization", "LpNormalization", "MeanVarianceNormalization", "ReduceMean", "ReduceSum", "ReduceL1",
        "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "ReduceSumSquare", "CumSum", "Exp", "Log", "Pow",
        "Sqrt", "Reciprocal", "Softplus", "Sin", "Cos", "Tan", "Sinh", "Cosh",
    }
)  # fmt: skip
_NO_LOW_FORM = frozenset({"Resize", "Upsample", "NonMaxSuppression", "Celu", "LSTM", "GRU", "RNN"})
_QUANTISERS = frozenset({"QuantizeLinear", "DequantizeLinear"})

_MAX_FP16 = 65504.0
_MAX_ROUNDING = 1e-2


@dataclass(frozen=True, slots=True)
class Choice:
    """Which nodes are computed in the low precision.

    Attributes:
        low: Names of nodes, in graph order; quantise and dequantise nodes that give or take the type are among them.
        kept: Name of a node that has float tensors and stays in fp32 -> why.
    """

    low: tuple[str, ...]
    kept: Mapping[str, str]


def choose(
    model: Any,
    precision: str,
    magnitudes: Mapping[str, float],
    *,
    excluded: Sequence[str] = (),
    data_max: float = np.inf,
) -> Choice:
    """Choose for a graph whose nodes have names and whose tensors have types.

    Args:
        model: fp32 graph, quantise/dequantise pairs allowed.
        precision: "fp16" or "bf16".
        magnitudes: Tensor -> largest absolute value seen; a tensor that is not in it is not judged by it.
        excluded: Names of nodes that stay in fp32.
        data_max: Largest magnitude that a node may see or give; only for fp16.
    """
    reader = _Reader(model, precision, magnitudes, frozenset(excluded), data_max if precision == "fp16" else np.inf)
    kept = {node.name: reason for node in reader.floats if (reason := reader.reason(node))}
    low = {node.name for node in reader.floats if node.name not in kept}
    for name in _islands(reader, low):
        low.discard(name)
        kept[name] = "its neighbours stay in fp32"
    low |= _quantisers(reader, low)
    return Choice(tuple(node.name for node in model.graph.node if node.name in low), kept)


class _Reader:
    """The graph with what the rules need to know of it."""

    def __init__(
        self,
        model: Any,
        precision: str,
        magnitudes: Mapping[str, float],
        excluded: AbstractSet[str],
        data_max: float,
    ) -> None:
        import onnx

        self._precision, self._magnitudes, self._excluded, self._data_max = precision, magnitudes, excluded, data_max
        self._float = int(onnx.TensorProto.FLOAT)
        self._types = tensor_types(model)
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._judged: dict[str, str] = {}
        self.nodes = list(model.graph.node)
        self.producers = {name: node for node in self.nodes for name in node.output if name}
        self.floats = [node for node in self.nodes if node.op_type not in _QUANTISERS and self.float_tensors(node)]

    def float_tensors(self, node: Any) -> list[str]:
        """fp32 tensors that a node reads or writes."""
        return [name for name in (*node.input, *node.output) if self.is_float(name)]

    def is_float(self, name: str) -> bool:
        """True for an fp32 tensor."""
        return bool(name) and self._types.get(name) == self._float

    def is_weight(self, name: str) -> bool:
        """True for an initializer."""
        return name in self._weights

    def reason(self, node: Any) -> str:
        """Why a node stays in fp32; "" if it need not."""
        if node.name in self._excluded:
            return "the recipe says so"
        if any(item.HasField("g") or item.graphs for item in node.attribute):
            return "control flow"
        if node.domain not in ("", "ai.onnx") or node.op_type in _NO_LOW_FORM:
            return f"{node.op_type} has no {self._precision} form"
        if node.op_type in SENSITIVE:
            return f"{node.op_type} is sensitive"
        if not has_low_form(node, self._precision, frozenset(name for name in node.input if self.is_float(name))):
            return f"{node.op_type} has no {self._precision} form"
        return self._range_reason(node)

    def _range_reason(self, node: Any) -> str:
        for name in self.float_tensors(node):
            if name in self._weights:
                if reason := self._weight_reason(name):
                    return reason
            elif (most := self._magnitudes.get(name, 0.0)) > self._data_max:
                return f"{name} reaches {most:.4g}, beyond {self._data_max:g}"
        return ""

    def _weight_reason(self, name: str) -> str:
        if name not in self._judged:
            from onnx import numpy_helper

            self._judged[name] = weight_reason(name, numpy_helper.to_array(self._weights[name]), self._precision)
        return self._judged[name]


def weight_reason(name: str, values: Array, precision: str) -> str:
    """Why a weight cannot be stored in the type; "" if it can."""
    if not values.size:
        return ""
    most = float(np.max(np.abs(values)))
    if precision == "bf16":  # fp32's range, and rounding is relative
        return "" if np.isfinite(most) else f"weight {name} is not finite"
    if not most <= _MAX_FP16:
        return f"weight {name} reaches {most:.4g}, beyond {_MAX_FP16:g}"
    wide = values.astype(np.float64)
    norm = float(np.linalg.norm(wide))
    lost = float(np.linalg.norm(wide - values.astype(np.float16).astype(np.float64)))
    return f"weight {name} has values too small for fp16" if norm and lost / norm > _MAX_ROUNDING else ""


def has_low_form(node: Any, precision: str, floats: AbstractSet[str]) -> bool:
    """True if the operator gives its float results in the type when its float inputs have it."""
    inputs, outputs = low_slots(node, precision)
    taken = [name for name, low in zip(node.input, inputs, strict=True) if low and name in floats]
    return bool(taken) and any(outputs)


def low_slots(node: Any, precision: str) -> tuple[list[bool], list[bool]]:
    """Which inputs and outputs of a node take the type in place of fp32, by the operator's newest schema.

    TensorRT is freer than the schema of an old opset, which may not have known the type. An output follows an input
    only if both share the schema's type variable; else an attribute decides its type and it stays as it is.
    """
    import onnx

    try:
        schema = onnx.defs.get_schema(node.op_type, domain="")
    except onnx.defs.SchemaError:
        return [False] * len(node.input), [False] * len(node.output)
    low = LOW_TYPES[precision]
    variables = {item.type_param_str for item in schema.type_constraints if low in item.allowed_type_strs}
    if node.op_type in _QUANTISERS:
        own = [node.op_type == "QuantizeLinear", True, False]
        return own[: len(node.input)], [node.op_type == "DequantizeLinear"]
    inputs = [_formal(schema.inputs, index).type_str for index in range(len(node.input))]
    outputs = [_formal(schema.outputs, index).type_str for index in range(len(node.output))]
    return [kind in variables for kind in inputs], [kind in variables and kind in inputs for kind in outputs]


def _formal(parameters: Sequence[Any], index: int) -> Any:
    return parameters[min(index, len(parameters) - 1)]  # the last one may be variadic


def _islands(reader: _Reader, low: AbstractSet[str]) -> list[str]:
    """Cheap nodes that are low between neighbours of which none is."""
    readers: dict[str, list[Any]] = {}
    for node in reader.nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = []
    for node in reader.floats:
        if node.name not in low or node.op_type in HEAVY:
            continue
        around = [reader.producers[name] for name in node.input if reader.is_float(name) and name in reader.producers]
        around += [user for name in node.output for user in readers.get(name, ())]
        if not any(other.name in low or other.op_type in _QUANTISERS for other in around):
            found.append(node.name)
    return found


def _quantisers(reader: _Reader, low: AbstractSet[str]) -> set[str]:
    """Quantise nodes that read the type, and dequantise nodes that give it.

    A pair gives what its reader computes in, because TensorRT fuses it into that reader only so. A weight is quantised
    in the type that it is read in.
    """
    readers: dict[str, list[Any]] = {}
    for node in reader.nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: set[str] = set()
    for node in reader.nodes:
        if node.op_type == "DequantizeLinear" and any(user.name in low for user in readers.get(node.output[0], ())):
            found.add(node.name)
    for node in reader.nodes:
        if node.op_type != "QuantizeLinear":
            continue
        source = reader.producers.get(node.input[0])
        if reader.is_weight(node.input[0]):
            if any(user.name in found for user in readers.get(node.output[0], ())):
                found.add(node.name)
        elif source is not None and source.name in low:
            found.add(node.name)
    return found
