# SPDX-License-Identifier: Apache-2.0
"""Nodes of the ONNX graph and the OpenVINO operations that they became.

Recipes speak of ONNX nodes by name, because that is what a user knows and what every backend shares; NNCF speaks of
OpenVINO operations. What lives here is the bridge, in both directions. It reads the graph only, never the weights, so
a model whose weights are beside it in another file costs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dovetail.errors import UnsupportedError
from dovetail.recipe import Recipe

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_PRODUCTS = frozenset({"Gemm", "MatMul"})
_TABLES = frozenset({"Gather"})
"""Embeddings: a table of weights from which rows are taken."""

_HEAVY = _CONVOLUTIONS | _PRODUCTS | _TABLES

_FLOATS = frozenset({0, 1, 10, 11, 16})
"""TensorProto data types that are floats (FLOAT, FLOAT16, DOUBLE, BFLOAT16), and 0 for "not known"."""

_PASSED_THROUGH = frozenset({"Dropout", "Identity"})
"""What conversion drops: its result becomes one more name of its input's, which another node computes."""

_COUNTED = re.compile(r"[A-Za-z]\w*_\d+")

_STEPS = 8  # how far a fused node is followed through what uses it

_WORKERS = frozenset({
    "Convolution", "ConvolutionBackpropData", "Gather", "GroupConvolution", "GroupConvolutionBackpropData", "MatMul",
})  # fmt: skip
"""OpenVINO operations that heavy nodes become."""

_QUIET_NEIGHBOURS = frozenset({"Constant", "Convert", "Parameter", "Result"})


@dataclass(frozen=True, slots=True)
class Exclusions:
    """What a recipe's excluded nodes became.

    Attributes:
        operations: Names of OpenVINO operations.
        folded: Excluded nodes that the conversion folded away, so that there is nothing left to keep in float.
    """

    operations: tuple[str, ...]
    folded: tuple[str, ...]

    def labels(self) -> dict[str, str]:
        """A label that says what was folded away; {} if nothing was."""
        return {"excluded_but_folded": ", ".join(self.folded)} if self.folded else {}


def quantised_nodes(model: Path, recipe: Recipe) -> tuple[str, ...]:
    """Names of the ONNX nodes whose arithmetic or weights a recipe would quantise, in graph order.

    Nodes without a name get the one that `named_nodes` gives them. Nodes inside subgraphs are left out: NNCF does not
    reach into the bodies of loops. So are those that the recipe excludes already.

    Args:
        model: An ONNX file; weights in other files are not read.
        recipe: Its option `quantization` decides: "static" (products, convolutions and embeddings), "weights" (those of
            them with constant weights), anything else (none).
    """
    kind = str(recipe.options.get("quantization", "none"))
    if kind not in ("static", "weights"):
        return ()
    graph = _graph(model)
    constants = _constants(graph)
    types = _known_types(graph)
    found = []
    for name, node in named_nodes(graph):
        if name in recipe.excluded_nodes or node.op_type not in _HEAVY or not _is_float(node, types):
            continue
        if _has_weight(node, constants) or (kind == "static" and _multiplies_activations(node, constants)):
            found.append(name)
    return tuple(found)


def named_nodes(graph: Any) -> Iterable[tuple[str, Any]]:
    """Every node of the graph with its name; one without gets "<operator>_<index>", the same in every backend."""
    taken = {node.name for node in graph.node}
    for index, node in enumerate(graph.node):
        name = f"{node.op_type}_{index}"
        yield node.name or (name if name not in taken else f"{name}_unnamed"), node


def operations_of(recipe: Recipe, source: Path, model: Any) -> Exclusions:
    """Find what the excluded nodes became: by their name, by the parts named after it ("conv2/WithoutBiases"), by the
    tensors that they write, and where a heavy node was fused into what uses it, by the next tensor that is left.

    Args:
        recipe: Names ONNX nodes.
        source: The ONNX file that was converted.
        model: The converted model, before any other change.

    Raises:
        UnsupportedError: The recipe names a node that the ONNX graph does not have.
    """
    if not recipe.excluded_nodes:
        return Exclusions((), ())
    graph = _graph(source)
    nodes = dict(named_nodes(graph))
    unknown = [name for name in recipe.excluded_nodes if name not in nodes]
    if unknown:
        raise UnsupportedError(
            f"recipe {recipe.name} excludes {', '.join(map(repr, unknown[:5]))}, which the model does not have; name"
            " nodes of the normalised model"
        )
    operations = [op for op in model.get_ops() if op.get_type_name() not in _QUIET_NEIGHBOURS]
    found: set[str] = set()
    folded = []
    for name in recipe.excluded_nodes:
        matches = _operations_for(name, nodes[name], graph, operations)
        found |= matches
        if not matches:
            folded.append(name)
    return Exclusions(tuple(sorted(found)), tuple(folded))


def _operations_for(name: str, node: Any, graph: Any, operations: Sequence[Any]) -> set[str]:
    named = {friendly for op in operations if _is_named_after(friendly := str(op.get_friendly_name()), name)}
    if named or node.op_type in _PASSED_THROUGH:
        return named
    front = {output for output in node.output if output}
    for _ in range(_STEPS if node.op_type in _HEAVY else 1):
        if writers := [op for op in operations if _writes(op, front)]:
            found = _computed_in(writers) if node.op_type in _HEAVY else writers
            return {str(op.get_friendly_name()) for op in found}
        front = {output for user in graph.node if front & set(user.input) for output in user.output if output}
    return set()


def _computed_in(writers: Sequence[Any]) -> list[Any]:
    """The writers of a heavy node's result, and where those only finish it, the operation that does the work.

    A convolution whose batch normalisation was folded into it leaves the tensor's name to the addition of the bias,
    and gets a name of its own that says nothing.
    """
    found, front = list(writers), list(writers)
    for _ in range(_STEPS):
        if not front or any(op.get_type_name() in _WORKERS for op in front):
            break
        inputs = (port.get_source_output().get_node() for op in front for port in op.inputs())
        front = [op for op in inputs if op.get_type_name() not in _QUIET_NEIGHBOURS]
    return found + [op for op in front if op.get_type_name() in _WORKERS]


def _is_named_after(friendly: str, name: str) -> bool:
    return friendly == name or friendly.startswith(f"{name}/")


def _writes(operation: Any, tensors: set[str]) -> bool:
    return any(tensors & port.get_names() for port in operation.outputs())


def graph_names(source: Path) -> frozenset[str]:
    """Names that the ONNX graph itself gives to nodes and tensors."""
    graph = _graph(source)
    tensors = {name for node in graph.node for name in (node.name, *node.input, *node.output)}
    return frozenset(tensors | {tensor.name for tensor in graph.initializer})


def name_anonymous(model: Any, known: frozenset[str]) -> None:
    """Number the operations that nobody named, in place, in graph order.

    The library names them after a counter of its process ("Constant_12089"), so without this the same build gives
    other bytes the second time. Names from the graph, and names that NNCF or a conversion derives from them, are kept.

    Args:
        model: Converted model.
        known: See `graph_names`; one of them may look like the library's own.
    """
    operations = model.get_ordered_ops()
    taken = known | {op.get_friendly_name() for op in operations}
    count = 0
    for operation in operations:
        friendly = operation.get_friendly_name()
        if friendly not in known and _COUNTED.fullmatch(friendly):
            while (name := f"{operation.get_type_name()}_n{count}") in taken:
                count += 1
            operation.set_friendly_name(name)
            count += 1
    for operation in operations:
        for body in _bodies(operation):
            name_anonymous(body, known)


def _bodies(operation: Any) -> Iterator[Any]:
    """The bodies of a loop or of both branches of a condition."""
    kind = operation.get_type_name()
    if kind == "If":
        yield from (operation.get_function(0), operation.get_function(1))
    elif kind in ("Loop", "TensorIterator"):
        yield operation.get_function()


def _graph(model: Path) -> Any:
    import onnx

    return onnx.load(str(model), load_external_data=False).graph


def _constants(graph: Any) -> set[str]:
    """Tensors that do not depend on an input: weights, and what is computed from weights only."""
    known = {tensor.name for tensor in graph.initializer} | {item.values.name for item in graph.sparse_initializer}
    for node in graph.node:  # in topological order, as ONNX demands
        if not node.op_type.startswith("Random") and all(name in known or not name for name in node.input):
            known.update(node.output)
    return known


def _known_types(graph: Any) -> dict[str, int]:
    values: Sequence[Any] = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: int(value.type.tensor_type.elem_type) for value in values}
    return types | {tensor.name: int(tensor.data_type) for tensor in graph.initializer}


def _is_float(node: Any, types: dict[str, int]) -> bool:
    return node.domain in ("", "ai.onnx") and all(types.get(name, 0) in _FLOATS for name in node.input[:1])


def _multiplies_activations(node: Any, constants: set[str]) -> bool:
    return node.op_type in _CONVOLUTIONS | _PRODUCTS and not any(name in constants for name in node.input[:2])


def _has_weight(node: Any, constants: set[str]) -> bool:
    """True where the operand that holds weights is constant: a table's first, a convolution's second, either factor."""
    if node.op_type in _TABLES:
        return node.input[0] in constants
    if node.op_type in _CONVOLUTIONS:
        return node.input[1] in constants
    return sum(name in constants for name in node.input[:2]) == 1
