# SPDX-License-Identifier: Apache-2.0
"""Rewrites a graph so that chosen nodes compute in fp16 or bf16: casts where types meet, weights stored in the type.

Each tensor is cast at most once in each direction. A tensor that anything reads in fp32 keeps its name for that form,
the other one gets a name of its own; so inputs, outputs and what control flow reads stay what they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compiler_svc.backends.tensorrt_autocast import low_slots
from compiler_svc.backends.tensorrt_graph import tensor_types

_Place = tuple[int, int]  # of an input: node, position


@dataclass(slots=True)
class _Uses:
    """Who reads an fp32 tensor of the source graph.

    Attributes:
        low: Inputs that read it in the low type.
        full: True if anything reads it in fp32.
    """

    low: list[_Place] = field(default_factory=list)
    full: bool = False


def with_casts(model: Any, precision: str, low: AbstractSet[str], *, keep_io: bool = True) -> Any:
    """A copy of the graph in which those nodes compute in the type.

    Args:
        model: fp32 graph with typed tensors, as `tensorrt_graph.prepared_graph` writes it.
        precision: "fp16" or "bf16".
        low: Names of nodes, as `tensorrt_autocast.choose` gives them.
        keep_io: True keeps the graph's inputs and outputs in fp32; False gives them the type where a chosen node reads
            or writes them and nothing else needs fp32.
    """
    rewriter = _Rewriter(model, precision, low, keep_io=keep_io)
    return rewriter.run()


class _Rewriter:
    def __init__(self, model: Any, precision: str, low: AbstractSet[str], *, keep_io: bool) -> None:
        import onnx

        self._onnx = onnx
        self._model = type(model)()
        self._model.CopyFrom(model)
        self._graph = self._model.graph
        self._precision = precision
        self._low_type = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[precision]
        self._low = low
        self._keep_io = keep_io
        self._types = tensor_types(model)
        self._slots = {
            index: low_slots(node, precision) for index, node in enumerate(self._graph.node) if node.name in low
        }

    def run(self) -> Any:
        """See `with_casts`."""
        uses = self._uses()
        given_low = dict(self._outputs_given_low())
        first: list[Any] = []
        after: dict[int, list[Any]] = {}
        self._weights(uses)
        for value in self._graph.input:
            if self._is_float(value.name) and value.name in uses:
                first += self._input_casts(value, uses[value.name])
        for index, node in enumerate(self._graph.node):
            for position, name in enumerate(node.output):
                if self._is_float(name):
                    low = (index, position) in given_low
                    after.setdefault(index, []).extend(self._output_casts(node, position, uses.get(name), low=low))
        nodes = list(first)
        for index, node in enumerate(self._graph.node):
            copy = self._onnx.NodeProto()
            copy.CopyFrom(node)
            nodes += [copy, *after.get(index, ())]
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        self._graph.ClearField("value_info")  # types have changed, and TensorRT infers its own
        return self._model

    def _is_float(self, name: str) -> bool:
        return bool(name) and self._types.get(name) == self._onnx.TensorProto.FLOAT

    def _uses(self) -> dict[str, _Uses]:
        found: dict[str, _Uses] = {}
        for index, node in enumerate(self._graph.node):
            slots = self._slots.get(index)
            for position, name in enumerate(node.input):
                if not self._is_float(name):
                    continue
                use = found.setdefault(name, _Uses())
                if slots is not None and slots[0][position]:
                    use.low.append((index, position))
                else:
                    use.full = True
            for name in _read_by_bodies(node):
                if self._is_float(name):
                    found.setdefault(name, _Uses()).full = True
        if self._keep_io:
            for value in self._graph.output:
                found.setdefault(value.name, _Uses()).full = True
        return found

    def _outputs_given_low(self) -> Iterator[tuple[_Place, str]]:
        for index, slots in self._slots.items():
            for position, name in enumerate(self._graph.node[index].output):
                if self._is_float(name) and slots[1][position]:
                    yield (index, position), name

    def _weights(self, uses: Mapping[str, _Uses]) -> None:
        """Store weights in the type that they are read in; both, if they are read in both."""
        added = []
        for tensor in self._graph.initializer:
            use = uses.get(tensor.name)
            if use is None or not use.low or tensor.data_type != self._onnx.TensorProto.FLOAT:
                continue
            converted = self._converted(tensor)
            if use.full:
                converted.name = self._low_name(tensor.name)
                self._rename(use.low, converted.name)
                added.append(converted)
            else:
                tensor.CopyFrom(converted)
        self._graph.initializer.extend(added)

    def _converted(self, tensor: Any) -> Any:
        helper, values = self._onnx.numpy_helper, self._onnx.numpy_helper.to_array(tensor)
        if self._precision == "fp16":
            return helper.from_array(values.astype(np.float16), tensor.name)
        import ml_dtypes  # comes with onnx

        bits = values.astype(ml_dtypes.bfloat16).view(np.uint16)
        return self._onnx.helper.make_tensor(
            tensor.name, self._low_type, list(tensor.dims), bits.astype("<u2").tobytes(), raw=True
        )

    def _input_casts(self, value: Any, use: _Uses) -> list[Any]:
        if not use.low:
            return []
        if not self._keep_io and not use.full:
            value.type.tensor_type.elem_type = self._low_type
            return []
        name = self._low_name(value.name)
        self._rename(use.low, name)
        return [self._cast(value.name, name, self._low_type)]

    def _output_casts(self, node: Any, position: int, use: _Uses | None, *, low: bool) -> list[Any]:
        name = node.output[position]
        if low and (use is None or not use.full):  # nothing reads it in fp32: the name is free
            for value in self._graph.output:
                if value.name == name:
                    value.type.tensor_type.elem_type = self._low_type
            return []
        if use is None or (not low and not use.low):
            return []
        other = self._low_name(name)
        self._rename(use.low, other)
        if not low:
            return [self._cast(name, other, self._low_type)]
        node.output[position] = other
        return [self._cast(other, name, self._onnx.TensorProto.FLOAT)]

    def _rename(self, places: list[_Place], name: str) -> None:
        for index, position in places:
            self._graph.node[index].input[position] = name

    def _low_name(self, name: str) -> str:
        return f"{name}__{self._precision}"

    def _cast(self, source: str, target: str, kind: int) -> Any:
        return self._onnx.helper.make_node("Cast", [source], [target], name=f"{target}__cast", to=kind)


def _read_by_bodies(node: Any) -> Iterator[str]:
    """Names that the bodies of a control flow node read; those of their own tensors are among them, harmlessly."""
    for attribute in node.attribute:
        bodies = [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
        for body in bodies:
            for inner in body.node:
                yield from inner.input
                yield from _read_by_bodies(inner)
            yield from (value.name for value in body.output)
