# SPDX-License-Identifier: Apache-2.0
"""Holds declared ranges against a graph, and spreads each to the dimensions that the graph gives the same name.

A range of the sequence length is declared for `input_ids`; `attention_mask` has a dimension of the same name, which
cannot be of another size. Signatures do not carry names of dimensions, so this is the place that knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dovetail.errors import InvalidInputError
from dovetail.ranges import DimRange, check_ranges
from dovetail.tensor import TensorSpec


def declared_ranges(model: Any, inputs: Sequence[TensorSpec], ranges: Sequence[DimRange]) -> tuple[DimRange, ...]:
    """The ranges of all inputs, sorted by input (in the signature's order) and axis.

    Args:
        model: Parsed model.
        inputs: Its signature.
        ranges: As pushed.

    Raises:
        InvalidInputError: A range does not fit the signature, or two differ for dimensions of one name.
    """
    check_ranges(ranges, inputs)
    names = _names(model, inputs)
    by_name: dict[str, DimRange] = {}
    found = {(item.input, item.axis): item for item in ranges}
    for item in ranges:
        name = names.get((item.input, item.axis), "")
        other = by_name.setdefault(name, item) if name else item
        if (other.min, other.usual, other.max) != (item.min, item.usual, item.max):
            raise InvalidInputError(
                f"axis {item.axis} of input {item.input!r} and axis {other.axis} of input {other.input!r} are both"
                f" {name!r} in the graph, but their declared ranges differ"
            )
    for (tensor, axis), name in names.items():
        if name in by_name:
            found.setdefault((tensor, axis), replace(by_name[name], input=tensor, axis=axis))
    order = {spec.name: index for index, spec in enumerate(inputs)}
    return tuple(sorted(found.values(), key=lambda item: (order[item.input], item.axis)))


def _names(model: Any, inputs: Sequence[TensorSpec]) -> dict[tuple[str, int], str]:
    """Name of each named dimension of the inputs."""
    wanted = {spec.name for spec in inputs}
    return {
        (value.name, axis): str(dim.dim_param)
        for value in model.graph.input
        if value.name in wanted
        for axis, dim in enumerate(value.type.tensor_type.shape.dim)
        if dim.dim_param
    }
