# SPDX-License-Identifier: Apache-2.0
"""Brings a model's opset and IR stamps to what the fleet's runtimes load.

A runtime refuses stamps newer than it knows, even if no newer operator is used: ONNX Runtime 1.31 loads ai.onnx up to
opset 26 and IR up to 13, while onnx 1.23 stamps 28 and 14 by default. Older stamps are left alone: every runtime loads
them.

Source: ONNX Runtime 1.31.1, model_load_utils.h (observed); ONNX versioning tables: opset 21 and IR 10 are what
ONNX Runtime 1.18 to 1.20 load, the oldest releases that this project's devices are expected to run.
"""

from __future__ import annotations

from typing import Any

import onnx

from compiler_svc.intake import graph
from dovetail.errors import InvalidInputError, UnsupportedError

FLEET_OPSET = 21
FLEET_IR = 10
OLDEST_OPSET = 7
"""Oldest opset that ONNX Runtime promises to load."""


def opset_of(model: Any) -> int:
    """Opset of the standard domain.

    Raises:
        InvalidInputError: The model does not say.
    """
    for item in model.opset_import:
        if item.domain in graph.STANDARD_DOMAINS:
            return int(item.version)
    if any(node.domain in graph.STANDARD_DOMAINS for node in graph.nodes(model)) or not model.opset_import:
        raise InvalidInputError("the model names no opset of ai.onnx; it is not a complete ONNX file (truncated?)")
    return 0


def check_operators(model: Any) -> None:
    """Refuse opsets, IR versions and standard operators that do not exist, by name.

    Raises:
        UnsupportedError: As above.
    """
    opset, newest = opset_of(model), int(onnx.defs.onnx_opset_version())
    if opset > newest:
        raise UnsupportedError(
            f"the model has opset {opset}; this service knows up to {newest}. Export it with a lower one"
        )
    if model.ir_version > onnx.IR_VERSION:
        raise UnsupportedError(
            f"the model has IR version {model.ir_version}; this service knows up to {int(onnx.IR_VERSION)}. Export it"
            " with an older onnx"
        )
    unknown = {
        node.op_type
        for node in graph.nodes(model)
        if node.domain in graph.STANDARD_DOMAINS and not onnx.defs.has(node.op_type, opset, "")
    }
    local = {function.name for function in model.functions if function.domain in graph.STANDARD_DOMAINS}
    if unknown - local:
        names = ", ".join(sorted(unknown - local))
        raise UnsupportedError(f"opset {opset} has no operator {names}; no backend can build this model")


def bring_to_fleet(model: Any) -> tuple[Any, list[str]]:
    """The model with stamps that the fleet loads, and a note for each change.

    Raises:
        UnsupportedError: The opset is too new or too old and the converter cannot change it.
    """
    notes: list[str] = []
    opset = opset_of(model)
    if opset > FLEET_OPSET or 0 < opset < OLDEST_OPSET:
        model = _converted(model, opset)
        notes.append(f"opset {opset} -> {FLEET_OPSET}")
    if model.ir_version > FLEET_IR:
        notes.append(f"ir {model.ir_version} -> {FLEET_IR}")
        model.ir_version = FLEET_IR
    return model, notes


def _converted(model: Any, opset: int) -> Any:
    try:
        return onnx.version_converter.convert_version(model, FLEET_OPSET)
    except Exception as exc:  # the converter raises RuntimeError, ValueError and its own errors, undocumented
        reason = " ".join(str(exc).split())[:300]
        raise UnsupportedError(
            f"the model has opset {opset}; devices load {OLDEST_OPSET} to {FLEET_OPSET}, and onnx cannot convert it:"
            f" {reason}. Export it with opset {FLEET_OPSET}"
        ) from exc
