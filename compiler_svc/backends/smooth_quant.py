# SPDX-License-Identifier: Apache-2.0
"""SmoothQuant: moves outliers of activations into the weights, so that eight bits hold both. A pure graph rewrite.

For every channel j of an activation X that only matrix products read as their left side, X is divided and the rows of
their weights are multiplied by s_j = max|X_j|^a / max|W_j|^(1-a); the products are equal before quantisation. The
division is folded into the affine part of a normalisation where X comes from one and nothing else reads it, else a Mul
is put in front.

ONNX Runtime's own switch needs the neural-compressor package (quantize_static of 1.31.1), which is why this is here.

Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", 2022
(arXiv 2211.10438), equation 4 and section 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler_svc.intake import graph as graphs
from dovetail.tensor import Array

_LEAST = 1e-5
"""Floor of the maxima, as in the authors' code: a dead channel must not divide by nothing."""


@dataclass(frozen=True, slots=True)
class SmoothGroup:
    """Matrix products that read one activation.

    Attributes:
        tensor: The activation; its last axis is the channel.
        nodes: Names of the MatMul and Gemm nodes whose left side it is, in graph order.
    """

    tensor: str
    nodes: tuple[str, ...]


def smooth_groups(model: Any, excluded: Sequence[str] = ()) -> tuple[SmoothGroup, ...]:
    """What can be smoothed: products with a constant two-dimensional weight, grouped by their activation.

    Args:
        model: Graph with named nodes; weights may be unloaded.
        excluded: Names of nodes that stay in float and are left alone.
    """
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    found: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.name in excluded or not _is_product(node) or node.input[0] in shapes:
            continue
        if len(shapes.get(node.input[1], ())) == 2:
            found.setdefault(node.input[0], []).append(node.name)
    return tuple(SmoothGroup(tensor, tuple(nodes)) for tensor, nodes in found.items())


def smooth(model: Any, groups: Sequence[SmoothGroup], maxima: Mapping[str, Array], alpha: float) -> int:
    """Rewrite the graph in place.

    Args:
        model: Graph with its weights loaded.
        groups: As `smooth_groups` gave them.
        maxima: Activation -> float32 array (channels,), its largest magnitudes on the calibration samples.
        alpha: How much of the difficulty goes to the weights, 0 to 1.

    Returns:
        How many activations were smoothed.
    """
    graph = _Graph(model)
    done = 0
    for group in groups:
        weights = [graph.weight_rows(name) for name in group.nodes]
        seen = maxima.get(group.tensor)
        if seen is None or any(weight.shape[0] != seen.shape[0] for weight in weights):
            continue
        rows = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
        scale = smoothing_scale(seen, rows, alpha)
        for name in group.nodes:
            graph.scale_weight(name, scale)
        if not graph.fold(group, scale):
            graph.insert(group, scale)
        done += 1
    graph.drop_unused()
    return done


def smoothing_scale(activations: Array, weights: Array, alpha: float) -> Array:
    """s_j for largest magnitudes by channel of the activation and of the weights; float32 array (channels,)."""
    seen = np.maximum(np.asarray(activations, np.float64), _LEAST)
    held = np.maximum(np.asarray(weights, np.float64), _LEAST)
    scale: Array = np.maximum(seen**alpha / held ** (1 - alpha), _LEAST).astype(np.float32)
    return scale


def _is_product(node: Any) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and not _attribute(node, "transA"))


def _attribute(node: Any, name: str) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), 0)


def _subgraphs(node: Any) -> list[Any]:
    return [attribute for attribute in node.attribute if attribute.HasField("g") or len(attribute.graphs)]


class _Graph:
    """A graph under rewriting: every changed weight becomes a tensor of its own, so sharing does no harm."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._graph = model.graph
        self._nested = any(_subgraphs(node) for node in model.graph.node)
        self._nodes = {node.name: node for node in model.graph.node}
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._outputs = {value.name for value in model.graph.output}

    def weight_rows(self, name: str) -> Array:
        """The weight of a product with its input channels first."""
        node = self._nodes[name]
        values = self._values(node.input[1])
        return values.T if _attribute(node, "transB") else values

    def scale_weight(self, name: str, scale: Array) -> None:
        """Multiply the weight's input channels."""
        node = self._nodes[name]
        values = self._values(node.input[1])
        scaled = values * (scale if _attribute(node, "transB") else scale[:, None])
        node.input[1] = self._add(f"{node.input[1]}_smooth_{name}", scaled)

    def fold(self, group: SmoothGroup, scale: Array) -> bool:
        """Divide where the activation is made; False if it is not made so, or something else reads it or may."""
        users = [node for node in self._graph.node if group.tensor in node.input]
        if self._nested or group.tensor in self._outputs or {node.name for node in users} != set(group.nodes):
            return False
        maker = next((node for node in self._graph.node if group.tensor in node.output), None)
        if maker is None:
            return False
        if maker.op_type == "LayerNormalization" and maker.output[0] == group.tensor:
            return self._fold_affine([(maker, 1), (maker, 2)] if len(maker.input) > 2 else [(maker, 1)], scale)
        if maker.op_type == "Add":
            return self._fold_decomposed(maker, scale)
        return False

    def _fold_decomposed(self, add: Any, scale: Array) -> bool:
        """Add(Mul(normalised, gamma), beta), where nothing else reads the product."""
        bias = next((index for index in (0, 1) if add.input[index] in self._weights), None)
        if bias is None:
            return False
        product = add.input[1 - bias]
        readers = [node for node in self._graph.node if product in node.input]
        mul = next((node for node in self._graph.node if product in node.output and node.op_type == "Mul"), None)
        if mul is None or len(readers) != 1 or product in self._outputs:
            return False
        gain = next((index for index in (0, 1) if mul.input[index] in self._weights), None)
        return gain is not None and self._fold_affine([(mul, gain), (add, bias)], scale)

    def _fold_affine(self, places: Sequence[tuple[Any, int]], scale: Array) -> bool:
        """Divide constant vectors; only if all of them are vectors over the channels."""
        if any(node.input[index] not in self._weights for node, index in places):
            return False
        values = [self._values(node.input[index]) for node, index in places]
        if any(value.shape != scale.shape for value in values):
            return False
        for (node, index), value in zip(places, values, strict=True):
            node.input[index] = self._add(f"{node.input[index]}_smooth_{node.name}", value / scale)
        return True

    def insert(self, group: SmoothGroup, scale: Array) -> None:
        """Put a Mul between the activation and the products."""
        import onnx

        name = f"{group.tensor}_smooth"
        factor = self._add(f"{name}_factor", (1 / scale).astype(np.float32))
        mul = onnx.helper.make_node("Mul", [group.tensor, factor], [name], name=f"{name}_mul")
        first = next(index for index, node in enumerate(self._graph.node) if node.name in group.nodes)
        self._graph.node.insert(first, mul)
        for node_name in group.nodes:
            self._find(node_name).input[0] = name
        known = next((value for value in self._graph.value_info if value.name == group.tensor), None)
        if known is not None:
            value = self._graph.value_info.add()
            value.CopyFrom(known)
            value.name = name

    def drop_unused(self) -> None:
        """Remove weights that nothing reads any more."""
        used = {name for node in graphs.nodes(self._model) for name in node.input} | self._outputs
        kept = [tensor for tensor in self._graph.initializer if tensor.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)

    def _find(self, name: str) -> Any:
        return next(node for node in self._graph.node if node.name == name)

    def _values(self, name: str) -> Array:
        import onnx

        return np.asarray(onnx.numpy_helper.to_array(self._weights[name]))

    def _add(self, name: str, values: Array) -> str:
        import onnx

        tensor = onnx.numpy_helper.from_array(np.asarray(values, np.float32), name)
        self._graph.initializer.append(tensor)
        self._weights[name] = self._graph.initializer[-1]
        return name
