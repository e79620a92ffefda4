# SPDX-License-Identifier: Apache-2.0
"""Puts quantise/dequantise pairs before the heavy nodes of a graph: int8 or fp8, as TensorRT reads them.

Symmetric (the zero point is 0), scales are constants, activations have one for the tensor, weights one for each channel
(fp8: one for the tensor), biases and results stay float. Pairs stand before the inputs of Conv, MatMul and Gemm, where
TensorRT fuses them into the operation; a tensor that several of them read is quantised once. Weights stay float in
front of their pair, so that a plan without weights can be refitted from them; TensorRT quantises them when it builds.

Where the pairs go is `onnxruntime_nodes.quantised_names`, the ranges come from `onnxruntime_calibration`.

Source: TensorRT documentation, "Working with quantized types" and "Explicit quantization" (symmetric; scales of
activations by tensor, of weights by tensor or channel; high precision weights are quantised at build time; weighted
operations are quantised at their inputs, biases are not); ONNX, QuantizeLinear 19 (fp16 and float8e4m3fn).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np

from dovetail.tensor import Array

LEAST_OPSET = 19
"""First with fp16 and float8 in QuantizeLinear and DequantizeLinear."""


@dataclass(frozen=True, slots=True)
class QuantisedType:
    """An eight bit type.

    Attributes:
        name: As in `Recipe.precision`.
        largest: Magnitude that the scale maps the range to.
    """

    name: str
    largest: float


INT8 = QuantisedType("int8", 127.0)
FP8 = QuantisedType("fp8", 448.0)
"""Float8E4M3FN; its largest value. Source: ONNX, "Float stored in 8 bits"."""


def with_pairs(
    model: Any,
    nodes: Iterable[str],
    ranges: Mapping[str, float],
    kind: QuantisedType,
    *,
    per_channel: bool,
    float_precision: str,
) -> Any:
    """A copy of the graph with pairs before the inputs of those nodes.

    Args:
        model: fp32 graph of opset 19 or newer, nodes named.
        nodes: Names of Conv, ConvTranspose, Gemm and MatMul nodes.
        ranges: Activation -> largest magnitude to represent; what is beyond saturates.
        kind: INT8 or FP8.
        per_channel: True for one scale for each output channel of a weight.
        float_precision: Scales are values of that type, so that both halves of a pair have the same one in any type.

    Raises:
        KeyError: A node reads an activation of which no range is known.
    """
    return _Inserter(model, frozenset(nodes), ranges, kind, per_channel=per_channel, precision=float_precision).run()


class _Inserter:
    def __init__(
        self,
        model: Any,
        nodes: AbstractSet[str],
        ranges: Mapping[str, float],
        kind: QuantisedType,
        *,
        per_channel: bool,
        precision: str,
    ) -> None:
        import onnx

        self._onnx = onnx
        self._model = type(model)()
        self._model.CopyFrom(model)
        self._nodes, self._ranges, self._kind = nodes, ranges, kind
        self._per_channel, self._precision = per_channel, precision
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._done: dict[tuple[str, int | None], str] = {}
        self._added: list[Any] = []

    def run(self) -> Any:
        """See `with_pairs`."""
        graph = self._model.graph
        ordered: list[Any] = []
        for node in list(graph.node):
            if node.name in self._nodes:
                for position in (0, 1):
                    node.input[position] = self._dequantised(node, position, ordered)
            copy = self._onnx.NodeProto()
            copy.CopyFrom(node)
            ordered.append(copy)
        del graph.node[:]
        graph.node.extend(ordered)
        graph.initializer.extend(self._added)
        return self._model

    def _dequantised(self, node: Any, position: int, ordered: list[Any]) -> str:
        """The dequantised form of an input; its pair is put in front the first time that it is asked for."""
        name = str(node.input[position])
        weight = self._weights.get(name)
        axis = None if weight is None or not self._per_channel else channel_axis(node, len(weight.dims))
        key = (name, axis)
        if key not in self._done:
            scales = self._scales(name, weight, axis)
            mark = name if axis is None else f"{name}__axis{axis}"
            self._done[key] = self._pair(name, mark, scales, axis, ordered)
        return self._done[key]

    def _scales(self, name: str, weight: Any, axis: int | None) -> Array:
        if weight is None:
            return scales_for(np.asarray(self._ranges[name]), self._kind, self._precision)
        values = np.abs(self._onnx.numpy_helper.to_array(weight).astype(np.float32))
        others = tuple(index for index in range(values.ndim) if index != axis)
        largest = np.max(values, axis=others if axis is not None else None, initial=0.0)
        return scales_for(largest, self._kind, self._precision)

    def _pair(self, name: str, mark: str, scales: Array, axis: int | None, ordered: list[Any]) -> str:
        helper = self._onnx.helper
        scale, zero, quantised, result = f"{mark}__scale", f"{mark}__zero", f"{mark}__quantised", f"{mark}__dequantised"
        self._added.append(self._onnx.numpy_helper.from_array(scales, scale))
        self._added.append(self._zero_points(zero, scales))
        where = {} if axis is None else {"axis": axis}
        ordered.append(helper.make_node("QuantizeLinear", [name, scale, zero], [quantised], name=quantised, **where))
        ordered.append(helper.make_node("DequantizeLinear", [quantised, scale, zero], [result], name=result, **where))
        return result

    def _zero_points(self, name: str, scales: Array) -> Any:
        kinds = {"int8": self._onnx.TensorProto.INT8, "fp8": self._onnx.TensorProto.FLOAT8E4M3FN}
        return self._onnx.helper.make_tensor(
            name, kinds[self._kind.name], list(scales.shape), bytes(scales.size), raw=True
        )


def channel_axis(node: Any, rank: int) -> int | None:
    """Axis of a weight that counts output channels; None where TensorRT wants one scale for all.

    A ConvTranspose with groups counts its output channels within a group only, and a batched product has none of its
    own.
    """
    attributes = {item.name: item.i for item in node.attribute}
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if attributes.get("group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if attributes.get("transB", 0) else 1
    return 1 if rank == 2 else None


def scales_for(largest: Array, kind: QuantisedType, float_precision: str) -> Array:
    """Scales for ranges up to `largest`, float32 of its shape; 1 for ranges that are empty or not finite.

    They are rounded to what the float type around the pair holds: fp16, bf16 or fp32 (below fp16's least value: that).
    """
    scales = np.asarray(largest, np.float32) / np.float32(kind.largest)
    scales = np.where(np.isfinite(scales) & (scales > 0), scales, np.float32(1.0))
    if float_precision == "fp16":
        least = np.finfo(np.float16).smallest_subnormal
        scales = np.maximum(scales.astype(np.float16), least).astype(np.float32)
    elif float_precision == "bf16":
        scales = (scales.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return np.asarray(scales, np.float32)
