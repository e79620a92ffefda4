# SPDX-License-Identifier: Apache-2.0
"""Reads the source model's graph: which of its tensors an artifact still has, and which layer each one stands for.

Building fuses, folds and renames nodes; tensors keep their names unless they vanish into a fused one. So tensors are
the common ground: a layer whose own result is gone is stood for by the first result downstream that is left.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the main graph.

    Attributes:
        name: As `Recipe.excluded_nodes` takes it; nameless nodes get "<operator>_<index>", as the backends give it.
        op_type: Its operator.
        inputs: Its input tensors; weights too.
        outputs: Its output tensors.
        weight_elements: Elements of the constant weights that it reads directly.
    """

    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weight_elements: int


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor that source and artifact share.

    Attributes:
        tensor: Its name.
        node: The layer it stands for, else the node that writes it.
        inputs: Shared tensors that it is computed from.
        layers: All layers that it stands for.
        weight_share: Of the nodes that were fused into it.
    """

    tensor: str
    node: Node
    inputs: tuple[str, ...]
    layers: tuple[str, ...]
    weight_share: float


@dataclass(slots=True)
class _Flow:
    """What is known of a tensor that the artifact does not have: the shared ones before it, and the nodes since."""

    inputs: dict[str, None] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)


def read_nodes(model: Path) -> tuple[Node, ...]:
    """Nodes of the main graph in order; weights in other files are not read."""
    import onnx

    return nodes_of(onnx.load(str(model), load_external_data=False))


def nodes_of(model: Any) -> tuple[Node, ...]:
    """The same of a graph in memory."""
    weights = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    taken = {node.name for node in model.graph.node}
    found = []
    for index, node in enumerate(model.graph.node):
        if node.op_type == "Constant":
            weights.update((node.output[0], math.prod(item.t.dims)) for item in node.attribute if item.name == "value")
        name = f"{node.op_type}_{index}"
        name = node.name or (name if name not in taken else f"{name}_unnamed")
        held = sum(weights.get(tensor, 0) for tensor in node.input)
        found.append(Node(name, node.op_type, tuple(filter(None, node.input)), tuple(filter(None, node.output)), held))
    return tuple(found)


def places(nodes: Iterable[Node], shared: frozenset[str], layers: frozenset[str]) -> tuple[Place, ...]:
    """Where the artifact's tensors stand in the source graph, in its order.

    Args:
        nodes: The source graph.
        shared: Tensors that the artifact has too.
        layers: Names of the nodes that count as layers.
    """
    nodes = tuple(nodes)
    total = sum(node.weight_elements for node in nodes) or 1
    flows: dict[str, _Flow] = {}
    claimed: set[str] = set()
    found: list[Place] = []
    for node in nodes:
        flow = _Flow(nodes={node.name: node})
        for tensor in node.inputs:
            if tensor in shared:
                flow.inputs[tensor] = None
            elif before := flows.get(tensor):
                flow.inputs |= before.inputs
                flow.nodes |= before.nodes
        for tensor in node.outputs:
            if tensor not in shared:
                flows[tensor] = flow
                continue
            fresh = {name: item for name, item in flow.nodes.items() if name not in claimed}
            claimed |= fresh.keys()
            found.append(_place(tensor, node, flow, fresh, layers, total))
    return tuple(found)


def tensors_of_layers(found: Iterable[Place]) -> dict[str, str]:
    """Layer -> the tensor that stands for it; layers of which nothing is left are not in it."""
    return {layer: place.tensor for place in found for layer in place.layers}


def _place(
    tensor: str, writer: Node, flow: _Flow, fresh: Mapping[str, Node], layers: frozenset[str], total: int
) -> Place:
    held = tuple(name for name in fresh if name in layers)
    node = writer if writer.name in layers or not held else fresh[held[-1]]
    share = sum(item.weight_elements for item in fresh.values()) / total
    return Place(tensor, node, tuple(flow.inputs), held, round(share, 4))
