# SPDX-License-Identifier: Apache-2.0
"""Brings a model's opset and IR stamps to what the fleet's runtimes load.

A runtime refuses stamps newer than it knows, even if no newer operator is used: ONNX Runtime 1.31 loads ai.onnx up to
opset 26 and IR up to 13, while onnx 1.23 stamps 28 and 14 by default. Stamps between the oldest that runtimes promise
to load and the fleet's newest are left alone.

Where it can be, only the stamp is changed: an operator means the same in all opsets from the one that brought its
version to the next one that changes it, so nothing needs to be shown. Only where that span ends too early the graph
goes through onnx's converter, whose result must then be shown to compute the same (`equivalence`). The converter drops
local functions (onnx 1.23.2, seen), so they are inlined before.

Source: ONNX operator changelog (`since_version`); ONNX versioning, "Operator sets"; ONNX Runtime 1.31.1,
model_load_utils.h (observed).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner

from compiler_svc.intake import graph
from compiler_svc.intake.limits import OLDEST_OPSET, FleetTarget
from dovetail.errors import InvalidInputError, UnsupportedError

OLDEST_IR = 4
"""Oldest IR version in which weights need not be listed as inputs; the normal form does not list them."""


@dataclass(frozen=True, slots=True)
class Stamped:
    """A model with stamps that the fleet loads.

    Attributes:
        model: It.
        notes: What changed.
        before: File of the model as it was, under the stamp of the same meaning that the runtime here is most likely
            to load, if the converter changed the graph; the result must be compared with it. Else None.
    """

    model: Any
    notes: tuple[str, ...] = ()
    before: Path | None = None


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


def bring_to_fleet(model: Any, target: FleetTarget, scratch: Path) -> Stamped:
    """The model with stamps that the fleet loads.

    Args:
        model: It is used up.
        target: Newest stamps that the fleet loads.
        scratch: Directory for the file of `Stamped.before`, which the caller removes.

    Raises:
        UnsupportedError: The opset is too new or too old and the converter cannot change it.
    """
    notes: list[str] = []
    before: Path | None = None
    opset = opset_of(model)
    if opset > target.opset or 0 < opset < OLDEST_OPSET:
        model = _inlined(model)
        oldest, newest = _exact_span(model, opset)
        wanted = min(newest, target.opset)
        if max(oldest, OLDEST_OPSET) <= wanted:
            _stamp(model, wanted)
        else:
            before = scratch / "before.onnx"
            _write_before(model, before, oldest if opset > target.opset else newest, target)
            model = _converted(model, opset, target)
        notes.append(f"opset {opset} -> {opset_of(model)}")
    ir_version = min(max(model.ir_version, OLDEST_IR), target.ir_version)
    if model.ir_version != ir_version:
        notes.append(f"ir {model.ir_version} -> {ir_version}")
        model.ir_version = ir_version
    return Stamped(model, tuple(notes), before)


def _inlined(model: Any) -> Any:
    """The model without local functions; those that cannot be inlined stay."""
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def _exact_span(model: Any, opset: int) -> tuple[int, int]:
    """Oldest and newest opset in which every operator of the model means what it means in its own."""
    if model.functions:  # they have opsets of their own
        return opset, opset
    oldest, newest = 1, int(onnx.defs.onnx_opset_version())
    for name in {node.op_type for node in graph.nodes(model) if node.domain in graph.STANDARD_DOMAINS}:
        since = int(onnx.defs.get_schema(name, opset, "").since_version)
        oldest = max(oldest, since)
        newest = min(newest, _last_with(name, since, opset, newest))
    return oldest, newest


def _last_with(name: str, since: int, opset: int, newest: int) -> int:
    """Newest opset up to `newest` in which the operator still has the version that came with `since`."""
    for later in range(opset + 1, newest + 1):
        if not onnx.defs.has(name, later, "") or onnx.defs.get_schema(name, later, "").since_version != since:
            return later - 1
    return newest


def _stamp(model: Any, opset: int) -> None:
    for item in model.opset_import:
        if item.domain in graph.STANDARD_DOMAINS:
            item.version = opset


def _write_before(model: Any, path: Path, opset: int, target: FleetTarget) -> None:
    stamped = type(model)()
    stamped.CopyFrom(model)
    _stamp(stamped, opset)
    stamped.ir_version = min(max(model.ir_version, OLDEST_IR), target.ir_version)
    path.write_bytes(stamped.SerializeToString())


def _converted(model: Any, opset: int, target: FleetTarget) -> Any:
    try:
        if model.functions:
            raise ValueError("its local functions cannot be inlined")
        return onnx.version_converter.convert_version(model, target.opset)
    except Exception as exc:  # the converter raises RuntimeError, ValueError and its own errors, undocumented
        reason = " ".join(str(exc).split())[:300]
        raise UnsupportedError(
            f"the model has opset {opset}; devices load {OLDEST_OPSET} to {target.opset}, and onnx cannot convert it:"
            f" {reason}. Export it with opset {target.opset}, or set DOVETAIL_FLEET_OPSET higher if your fleet has no"
            " older runtime"
        ) from exc
