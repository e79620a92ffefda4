# SPDX-License-Identifier: Apache-2.0
"""Which nodes of a graph a recipe quantises, and where an excluded node went when the graph was prepared.

Names are those of the normalised model. Preparing a graph folds, fuses and renames nodes, and the quantisation tools
address the prepared graph, so every exclusion is mapped onto it here. Pure graph reading: nothing is run or written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dovetail.errors import UnsupportedError
from dovetail.recipe import Recipe

HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that hold a network's arithmetic; the others are quantised, if at all, only to connect these."""

_CONSTANT_WEIGHT = frozenset({"Conv", "Gemm", "MatMul"})
"""What dynamic quantisation takes, and only with constant weights; static too if the recipe says so.
Source: onnxruntime 1.31.1, quantization/registry.py (IntegerOpsRegistry), MatMulConstBOnly, and
replace_gemm_with_matmul."""

_MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity"})
_STEPS = 8  # how far an excluded node is followed through its consumers until a tensor survived the preparation


@dataclass(frozen=True, slots=True)
class Exclusions:
    """Where excluded nodes are in the prepared graph.

    Attributes:
        nodes: Names in the prepared graph, sorted.
        absorbed: Excluded names of which nothing is left there (folded into constants).
    """

    nodes: tuple[str, ...]
    absorbed: tuple[str, ...]


def name_nodes(model: Any) -> None:
    """Give nameless nodes of the main graph a name, in place: the quantisation tools address nodes by name."""
    taken = {node.name for node in model.graph.node}
    for index, node in enumerate(model.graph.node):
        if not node.name:
            name = f"{node.op_type}_{index}"
            node.name = name if name not in taken else f"{name}_unnamed"


def quantised_names(model: Any, recipe: Recipe) -> tuple[str, ...]:
    """Heavy nodes that a recipe quantises, in graph order; () for a float recipe.

    Args:
        model: Normalised model; `name_nodes` has run.
        recipe: Its `excluded_nodes` and the documented defaults (`keep_first`, `keep_last`) are left out.
    """
    kind = str(recipe.options.get("quantization", "none"))
    if kind == "none":
        return ()
    kept = {*recipe.excluded_nodes, *kept_by_default(model, recipe)}
    return tuple(node.name for node in _candidates(model, kind, recipe) if node.name not in kept)


def kept_by_default(model: Any, recipe: Recipe) -> tuple[str, ...]:
    """The first and last heavy nodes where the recipe says that they stay in float (`keep_first`, `keep_last`)."""
    heavy = [node.name for node in model.graph.node if node.op_type in HEAVY]
    found: list[str] = []
    if heavy and recipe.options.get("keep_first", False):
        found.append(heavy[0])
    if heavy and recipe.options.get("keep_last", False):
        found.append(heavy[-1])
    return tuple(dict.fromkeys(found))


def tail_nodes(model: Any) -> set[str]:
    """Names of nodes behind the last heavy ones: nothing heavy is reached from them; and convolutions fed by a softmax.

    A single node that ends a chain of heavy ones belongs to it (an activation that is fused into the layer before).
    """
    producers = {output: node for node in model.graph.node for output in node.output if output}
    averaging = {node.name for node in model.graph.node if node.op_type == "Conv" and _averages(node, producers)}
    leads: set[str] = set()
    for node in reversed(model.graph.node):
        heavy = node.op_type in HEAVY and node.name not in averaging
        if heavy or leads & set(node.output):
            leads.update(name for name in node.input if name)
    return averaging | {
        node.name
        for node in model.graph.node
        if node.op_type not in HEAVY and not leads & set(node.output) and not _activates(node, producers)
    }


def _averages(conv: Any, producers: Mapping[str, Any]) -> bool:
    """True if a convolution reads a softmax, directly or through moves of data."""
    node = producers.get(conv.input[0])
    while node is not None and node.op_type in _MOVES:
        node = producers.get(node.input[0])
    return node is not None and node.op_type == "Softmax"


def _activates(node: Any, producers: Mapping[str, Any]) -> bool:
    before = producers.get(node.input[0]) if node.input else None
    return node.op_type in ("Relu", "Clip") and before is not None and before.op_type in HEAVY


def variable_products(model: Any) -> set[str]:
    """Names of matrix products of two activations, such as those within attention."""
    constants = weight_elements(model)
    return {
        node.name for node in model.graph.node
        if node.op_type in ("Gemm", "MatMul") and not constants.get(node.input[1])
    }  # fmt: skip


def weight_elements(model: Any) -> Mapping[str, int]:
    """Tensor name -> number of elements, of the main graph's constant weights."""
    found = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            values = [attribute.t for attribute in node.attribute if attribute.name == "value"]
            found.update((node.output[0], math.prod(tensor.dims)) for tensor in values)
    return found


def _candidates(model: Any, kind: str, recipe: Recipe) -> Iterator[Any]:
    constants = weight_elements(model)
    constant_only = bool(recipe.options.get("constant_weights_only", False))
    least = int(recipe.options.get("least_weight_elements", 0))
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in HEAVY:
            continue
        weight = constants.get(node.input[1], 0)
        if kind == "weights":
            if node.op_type == "MatMul" and weight >= max(least, 1):
                yield node
        elif (kind == "static" and not constant_only) or (node.op_type in _CONSTANT_WEIGHT and weight):
            yield node


def excluded_in(prepared: Any, source: Any, names: Sequence[str], recipe: Recipe) -> Exclusions:
    """Find excluded nodes of the source in the prepared graph.

    A node that kept its name is itself; a fused one carries its first part's name as a prefix ("fc/MatMulAddFusion");
    else the node that now gives its result, or the first result downstream that is left, took it in.

    Raises:
        UnsupportedError: A name is in neither graph.
    """
    present = {node.name for node in prepared.graph.node}
    sources = {node.name: node for node in source.graph.node}
    unknown = [name for name in names if name not in sources and name not in present]
    if unknown:
        raise UnsupportedError(f"recipe {recipe.name} excludes nodes that the model does not have: {unknown[:5]}")
    producers = {output: node.name for node in prepared.graph.node for output in node.output if output}
    found: set[str] = set()
    absorbed: list[str] = []
    for name in names:
        became = _became(name, sources, source, present, producers)
        found.update(became)
        if not became:
            absorbed.append(name)
    return Exclusions(tuple(sorted(found)), tuple(absorbed))


def _became(
    name: str, sources: Mapping[str, Any], source: Any, present: set[str], producers: Mapping[str, str]
) -> set[str]:
    if name in present:
        return {name}
    fused = {other for other in present if other.startswith(f"{name}/")}
    return fused or _downstream(sources[name], source, producers)


def _downstream(node: Any, source: Any, producers: Mapping[str, str]) -> set[str]:
    """The nodes that give the nearest surviving results of a node that is gone."""
    front = [output for output in node.output if output]
    for _ in range(_STEPS):
        found = {producers[tensor] for tensor in front if tensor in producers}
        if found or not front:
            return found
        reached = set(front)
        front = [output for user in source.graph.node if reached & set(user.input) for output in user.output if output]
    return set()
