# SPDX-License-Identifier: Apache-2.0
"""Reads what TensorRT's engine inspector says of an engine, and holds it against what the recipe claims. Pure.

The JSON differs between the majors: 10 lists "Bindings" and gives each tensor a "Format/Datatype", 11 lists
"I/O Tensors" and has "Format" and "DataType" apart. Both need an engine that was built with detailed profiling
verbosity; else layers are mere names.

What can be seen: a layer names the ONNX nodes that it was made from and the types of its inputs. A kernel that was
fused with the cast or the quantisation in front of it hides the type inside; such layers count as hidden, not as wrong.

Written against documented output, not executed on a GPU so far.

Source: TensorRT documentation 11.3, "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x"; 10.16, "Engine
Inspector" (Metadata "[ONNX Layer: …]").
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dovetail.errors import BuildFailedError

_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_TYPES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("fp8", ("fp8", "float8", "e4m3")),
    ("bf16", ("bf16", "bfloat16")),
    ("fp16", ("fp16", "half", "float16")),
    ("int8", ("int8",)),
    ("fp32", ("fp32", "float")),
)
"""Precision -> words that stand for it, the more special one first ("bfloat16" holds "float16")."""

_CONVERTING = ("__cast", "__quantised", "__dequantised")  # names that our casts and pairs end with


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of an engine.

    Attributes:
        name: As TensorRT calls it.
        kind: Its type, such as "CaskConvolution".
        nodes: ONNX nodes that it was made from.
        inputs: Precisions of its inputs, as far as they are numbers: "fp32", "fp16", "bf16", "int8", "fp8".
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    inputs: frozenset[str]

    @property
    def converts(self) -> bool:
        """True if a cast or a quantisation is fused into it: its inputs then do not tell what it computes in."""
        return any(node.endswith(_CONVERTING) for node in self.nodes)


def layers_of(text: str) -> tuple[Layer, ...]:
    """The layers in the inspector's JSON, of TensorRT 10 or 11.

    Raises:
        BuildFailedError: It is not the inspector's JSON, or names only.
    """
    try:
        document = json.loads(text)
        rows = document["Layers"]
    except (ValueError, KeyError, TypeError) as exc:
        raise BuildFailedError(f"the engine inspector's report cannot be read: {type(exc).__name__}") from exc
    if any(not isinstance(row, dict) for row in rows):
        raise BuildFailedError("the engine inspector gives names only, so nothing can be said about precisions")
    return tuple(_layer(row) for row in rows)


def _layer(row: Mapping[str, Any]) -> Layer:
    name = str(row.get("Name", ""))
    nodes = dict.fromkeys(_NODE.findall(str(row.get("Metadata", ""))))
    if not nodes:  # before there was metadata, fused layers were called by their parts
        nodes = dict.fromkeys(part.strip() for part in name.split(" + "))
    types = (precision_of(_type_text(item)) for item in row.get("Inputs", ()))
    return Layer(name, str(row.get("LayerType", "")), tuple(nodes), frozenset(kind for kind in types if kind))


def _type_text(tensor: Any) -> str:
    if not isinstance(tensor, dict):
        return ""
    for field in ("DataType", "Datatype", "Format/Datatype"):
        if tensor.get(field):
            return str(tensor[field])
    return ""


def precision_of(text: str) -> str:
    """The precision that a data type or format speaks of; "" for integers, booleans and what is unknown."""
    lower = text.lower()
    return next((name for name, words in _TYPES if any(word in lower for word in words)), "")


@dataclass(frozen=True, slots=True)
class Finding:
    """What was seen of the heavy layers.

    Attributes:
        seen: Nodes that compute in the precision that they should.
        hidden: Nodes of which that cannot be told.
        wrong: Node -> what it computes in instead.
    """

    seen: tuple[str, ...]
    hidden: tuple[str, ...]
    wrong: Mapping[str, str]


def compare(layers: tuple[Layer, ...], claimed: Mapping[str, str]) -> Finding:
    """Hold the engine's layers against the precision of each heavy node in the graph."""
    seen: list[str] = []
    hidden: list[str] = []
    wrong: dict[str, str] = {}
    for node, precision in claimed.items():
        found = list(_evidence(layers, node))
        if any(precision in layer.inputs for layer in found):
            seen.append(node)
        elif all(layer.converts or not layer.inputs for layer in found):
            hidden.append(node)
        else:
            wrong[node] = " and ".join(sorted(set().union(*(layer.inputs for layer in found))))
    return Finding(tuple(seen), tuple(hidden), wrong)


def _evidence(layers: tuple[Layer, ...], node: str) -> Iterator[Layer]:
    return (layer for layer in layers if node in layer.nodes)


def check_claim(precision: str, finding: Finding) -> str:
    """What to tell of the finding.

    Raises:
        BuildFailedError: A heavy layer computes in another precision than the recipe claims; the text names layers.
    """
    if finding.wrong:
        named = ", ".join(f"{node} in {found}" for node, found in list(finding.wrong.items())[:5])
        raise BuildFailedError(
            f"the engine is not what its recipe claims ({precision}): {len(finding.wrong)} heavy layers compute in"
            f" another precision than the graph says: {named}; exclude them, or use another recipe"
        )
    total = len(finding.seen) + len(finding.hidden)
    hidden = f"; {len(finding.hidden)} are fused with a conversion and cannot be seen" if finding.hidden else ""
    return f"seen in {len(finding.seen)} of {total} heavy layers{hidden}"
