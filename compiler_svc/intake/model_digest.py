# SPDX-License-Identifier: Apache-2.0
"""The model digest: equal for equal graphs, however they were serialised; different for all that computes otherwise.

Left out: doc strings, producer, model and graph names, metadata, value_info, where tensor data is stored and in which
field, the order of initialisers and of attributes. Kept: node order (a valid topological order is part of what was
pushed) and node names (recipes name nodes), operators, attributes, weights, opsets, functions, signature.

The digest is of the graph that artifacts are built from: after the conversion of stamps and after simplification. Both
are deterministic, so the same pushed graph gives the same digest. Another release of onnxslim may give another one,
which is right, since other bytes are then built; the notes of the model name the release.

The file's own sha256 cannot do this: exporters are not deterministic (tf2onnx issue 1789, ONNX Runtime issue 14631).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import onnx

from compiler_svc.intake.graph import STANDARD_DOMAINS
from dovetail.digest import digest_of, sha256_hex, sha256_stream

SCHEMA = 2
"""Raised whenever the meaning of the digest changes."""

_NONE_KNOWN: Mapping[str, str] = MappingProxyType({})
_TYPE = onnx.AttributeProto


def model_digest(model: Any, known: Mapping[str, str] = _NONE_KNOWN) -> str:
    """Digest of a model.

    Args:
        model: Its tensors hold their data, but for those in `known`.
        known: Name of a weight of the main graph whose data is in a file -> its `tensor_digest`.

    Source: ONNX IR specification, "Graphs" and "Attributes": what belongs to the meaning of a model.
    """
    return digest_of(
        {
            "schema": SCHEMA,
            "opsets": sorted([_domain(item.domain), item.version] for item in model.opset_import),
            "graph": _graph(model.graph, known),
            "functions": sorted((_function(item) for item in model.functions), key=lambda item: item["name"]),
        }
    )


def tensor_digest(tensor: Any) -> str:
    """Digest of a tensor's type, shape and values; independent of the field that holds them."""
    head = tensor_head(tensor)
    if tensor.data_type == onnx.TensorProto.STRING:
        return sha256_stream(_text_parts(head, tensor.string_data))
    if tensor.HasField("raw_data"):
        return sha256_stream((head, tensor.raw_data))
    return sha256_stream((head, onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)).raw_data))


def tensor_head(tensor: Any) -> bytes:
    """What precedes a tensor's raw data in its digest: type and shape."""
    return struct.pack(f"<ii{len(tensor.dims)}q", tensor.data_type, len(tensor.dims), *tensor.dims)


def _text_parts(head: bytes, elements: Iterable[bytes]) -> Iterable[bytes]:
    yield head
    for element in elements:
        yield struct.pack("<I", len(element)) + element


def _graph(graph: Any, known: Mapping[str, str] = _NONE_KNOWN) -> dict[str, Any]:
    weights = {tensor.name for tensor in graph.initializer}
    return {
        "inputs": [_value(item) for item in graph.input if item.name not in weights],
        "outputs": [_value(item) for item in graph.output],
        "weights": sorted([item.name, known.get(item.name) or tensor_digest(item)] for item in graph.initializer),
        "sparse": sorted(_sparse(tensor) for tensor in graph.sparse_initializer),
        "nodes": [_node(node) for node in graph.node],
    }


def _function(function: Any) -> dict[str, Any]:
    return {
        "name": [_domain(function.domain), function.name, getattr(function, "overload", "")],
        "inputs": list(function.input),
        "outputs": list(function.output),
        "attributes": sorted(function.attribute),
        "defaults": sorted((_attribute(item) for item in function.attribute_proto), key=lambda item: str(item[0])),
        "opsets": sorted([_domain(item.domain), item.version] for item in function.opset_import),
        "nodes": [_node(node) for node in function.node],
    }


def _value(value: Any) -> list[Any]:
    """Name and type; the type's own doc strings do not exist, so its deterministic bytes will do."""
    return [value.name, value.type.SerializeToString(deterministic=True).hex()]


def _node(node: Any) -> list[Any]:
    attributes = sorted((_attribute(item) for item in node.attribute), key=lambda item: str(item[0]))
    return [
        node.name,
        _domain(node.domain),
        node.op_type,
        getattr(node, "overload", ""),
        list(node.input),
        list(node.output),
        attributes,
    ]


def _attribute(attribute: Any) -> list[Any]:
    return [attribute.name, attribute.type, attribute.ref_attr_name, _attribute_value(attribute)]


def _attribute_value(attribute: Any) -> Any:
    readers: dict[int, Callable[[], Any]] = {
        _TYPE.FLOAT: lambda: _floats([attribute.f]),
        _TYPE.INT: lambda: attribute.i,
        _TYPE.STRING: lambda: attribute.s.hex(),
        _TYPE.TENSOR: lambda: tensor_digest(attribute.t),
        _TYPE.GRAPH: lambda: _graph(attribute.g),
        _TYPE.SPARSE_TENSOR: lambda: _sparse(attribute.sparse_tensor),
        _TYPE.FLOATS: lambda: _floats(attribute.floats),
        _TYPE.INTS: lambda: list(attribute.ints),
        _TYPE.STRINGS: lambda: [item.hex() for item in attribute.strings],
        _TYPE.TENSORS: lambda: [tensor_digest(item) for item in attribute.tensors],
        _TYPE.GRAPHS: lambda: [_graph(item) for item in attribute.graphs],
        _TYPE.SPARSE_TENSORS: lambda: [_sparse(item) for item in attribute.sparse_tensors],
    }
    if attribute.ref_attr_name:
        return None
    reader = readers.get(attribute.type)
    return reader() if reader else sha256_hex(attribute.SerializeToString(deterministic=True))


def _floats(values: Iterable[float]) -> str:
    """float32 bit patterns, so that NaN and infinity have a form too."""
    items = list(values)
    return struct.pack(f"<{len(items)}f", *items).hex()


def _sparse(tensor: Any) -> list[Any]:
    return [tensor.values.name, list(tensor.dims), tensor_digest(tensor.values), tensor_digest(tensor.indices)]


def _domain(domain: str) -> str:
    return "" if domain in STANDARD_DOMAINS else domain
