# SPDX-License-Identifier: Apache-2.0
"""Names and sizes of an exported program's inputs and outputs, as callers will know them.

Inputs are named after the arguments of the module's forward, outputs after the keys of what it returns ("output" for a
single tensor, "output_0" … for a tuple), never after nodes of the graph, which change with torch's version. Nothing
here runs the program. torch is imported by whoever has the program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dovetail.errors import UnsupportedError
from dovetail.ranges import DimRange

_NO_BOUND = 1 << 31  # a larger upper bound says nothing: torch's own default is near 2^63


def input_nodes(program: Any) -> dict[str, Any]:
    """Input name -> graph node, in order, for all inputs that are tensors.

    Raises:
        UnsupportedError: An input is a number that may vary, which no inference protocol carries.
    """
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    found: dict[str, Any] = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind.name != "USER_INPUT":
            continue
        kind = type(spec.arg).__name__
        if kind == "TensorArgument":
            found[spec.arg.name] = nodes[spec.arg.name]
        elif kind != "ConstantArgument":
            raise UnsupportedError(
                f"input {spec.arg.name!r} is a number that may vary ({kind}); pass it as a tensor, or fix it"
            )
    if not found:
        raise UnsupportedError("the program takes no tensor; a model to serve needs at least one input")
    return found


def output_names(program: Any) -> tuple[str, ...]:
    """Name of each output that is a tensor, in the graph's order."""
    from torch.utils import _pytree as pytree

    spec = program.call_spec.out_spec
    tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    names = {leaf: _path_name(path) for path, leaf in pytree.tree_flatten_with_path(tree)[0]}
    return tuple(names[index] for index in tensor_outputs(program))


def tensor_outputs(program: Any) -> tuple[int, ...]:
    """Which of the flattened outputs are tensors; others are constants such as None."""
    specs = [item for item in program.graph_signature.output_specs if item.kind.name == "USER_OUTPUT"]
    return tuple(index for index, item in enumerate(specs) if type(item.arg).__name__ == "TensorArgument")


def program_ranges(program: Any, usual: Mapping[tuple[str, int], int] | None = None) -> tuple[DimRange, ...]:
    """Declared sizes of the free dimensions whose upper bound is known.

    Args:
        program: The exported program.
        usual: (input, axis) -> size to build and measure for; else the least.
    """
    found: list[DimRange] = []
    for name, axis, size in free_dimensions(program):
        least, most = size_bounds(program, size.node.expr)
        if most is not None:
            wanted = (usual or {}).get((name, axis), least)
            found.append(DimRange(name, axis, least, min(max(wanted, least), most), most))
    return tuple(found)


def size_bounds(program: Any, expression: Any) -> tuple[int, int | None]:
    """Least (1 or more) and largest value of an expression of sizes; None if there is no largest."""
    from torch.utils._sympy.value_ranges import bound_sympy

    bounds = bound_sympy(expression, program.range_constraints)
    bounded = bounds.upper.is_Integer and bounds.upper < _NO_BOUND  # torch has an infinity of its own, which is none
    return max(1, int(bounds.lower)), int(bounds.upper) if bounded else None


def free_dimensions(program: Any) -> list[tuple[str, int, Any]]:
    """Input, axis and symbolic size of each dimension that may vary."""
    return [
        (name, axis, size)
        for name, node in input_nodes(program).items()
        for axis, size in enumerate(node.meta["val"].shape)
        if not isinstance(size, int)
    ]


def _path_name(path: Sequence[Any]) -> str:
    """Such as "output" for an only output, "output_1" for the second of a tuple, "logits" for a key, "past.0" below."""
    parts = [str(next(getattr(key, field) for field in ("key", "name", "idx") if hasattr(key, field))) for key in path]
    if not parts or parts[0].isdigit():
        parts = ["_".join(["output", *parts[:1]]), *parts[1:]]
    return ".".join(parts)
