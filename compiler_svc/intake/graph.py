# SPDX-License-Identifier: Apache-2.0
"""Walks over an ONNX model: every graph, node, attribute and tensor, however deep, and the limits on their number.

A model hides tensors and nodes in subgraphs (If, Loop, Scan), in attributes and in local functions; a check that looks
at the main graph only can be walked around. Everything here is a generator over the parsed protobuf.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from compiler_svc.intake.limits import ModelLimits
from dovetail.errors import InvalidInputError, OverLimitError

STANDARD_DOMAINS = ("", "ai.onnx")


def nodes(model: Any) -> Iterator[Any]:
    """All nodes of the main graph, its subgraphs and the local functions."""
    yield from _nodes_of(model.graph.node)
    for function in model.functions:
        yield from _nodes_of(function.node)


def _nodes_of(level: Any) -> Iterator[Any]:
    for node in level:
        yield node
        for attribute in node.attribute:
            for graph in _graphs_of(attribute):
                yield from _nodes_of(graph.node)


def graphs(model: Any) -> Iterator[Any]:
    """The main graph and all subgraphs, also those of local functions."""
    yield model.graph
    for node in nodes(model):
        for attribute in node.attribute:
            yield from _graphs_of(attribute)


def _graphs_of(attribute: Any) -> Iterator[Any]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def tensors(model: Any) -> Iterator[Any]:
    """All dense tensors: initialisers of all graphs and tensors in attributes; the parts of sparse ones too."""
    for graph in graphs(model):
        yield from graph.initializer
    for node in nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
    for sparse in sparse_tensors(model):
        yield from (sparse.values, sparse.indices)


def sparse_of(attribute: Any) -> Iterator[Any]:
    """Sparse tensors in an attribute."""
    if attribute.HasField("sparse_tensor"):
        yield attribute.sparse_tensor
    yield from attribute.sparse_tensors


def sparse_tensors(model: Any) -> Iterator[Any]:
    """All sparse tensors, of graphs and of attributes."""
    for graph in graphs(model):
        yield from graph.sparse_initializer
    for node in nodes(model):
        for attribute in node.attribute:
            yield from sparse_of(attribute)


def tensor_bytes(model: Any) -> int:
    """Bytes of all raw tensor data that the parsed model holds."""
    return sum(len(tensor.raw_data) for tensor in tensors(model))


def operator_name(node: Any) -> str:
    """Name as it is shown: "Conv" for standard operators, "com.example::Foo" for others."""
    return str(node.op_type) if node.domain in STANDARD_DOMAINS else f"{node.domain}::{node.op_type}"


def check_limits(model: Any, limits: ModelLimits) -> None:
    """Refuse graphs that are too large, before anything allocates by their declared sizes.

    Raises:
        OverLimitError: Too many nodes, or a tensor or shape with too many elements.
        InvalidInputError: A dimension is negative.
    """
    for count, _ in enumerate(nodes(model), start=1):
        if count > limits.nodes:
            raise OverLimitError(f"the model has more than {limits.nodes} nodes, which is the limit of this service")
    total = 0
    for tensor in tensors(model):
        total += _checked_elements(f"tensor {tensor.name!r}", tensor.dims, limits)
        if total > limits.total_elements:
            raise OverLimitError(f"the model's tensors have more than {limits.total_elements} elements together")
    for sparse in sparse_tensors(model):
        _checked_elements(f"sparse tensor {sparse.values.name!r}", sparse.dims, limits)
    for graph in graphs(model):
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.HasField("tensor_type"):
                dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim if dim.HasField("dim_value")]
                _checked_elements(f"shape of {value.name!r}", dims, limits)


def _checked_elements(what: str, dims: Any, limits: ModelLimits) -> int:
    if any(dim < 0 for dim in dims):
        raise InvalidInputError(f"{what} is {list(dims)}: dimensions must not be negative")
    elements: int = math.prod(dims)
    if elements > limits.elements:
        raise OverLimitError(
            f"{what} is {list(dims)}: {elements} elements, the limit of this service is {limits.elements}"
        )
    return elements
