# SPDX-License-Identifier: Apache-2.0
"""Which operators of an ONNX model OpenVINO's front end and its CPU plugin do not have.

There is no level between "supported" and "unsupported" here: an artifact runs on one device, and in 2026.4 the CPU
plugin reports a kernel of its own for every operation that it takes, none by the slow reference path (the execution
graph of some thirty rare ONNX operators was read for that).
"""

from __future__ import annotations

import re
from pathlib import Path

from compiler_svc.backends.base import OperatorSupport
from dovetail.engines.openvino_engine import import_openvino, without_source_positions
from dovetail.errors import brief

_NO_RULE = re.compile(r"No conversion rule found for operations: (.+)")
_FAILED_RULE = re.compile(r"Conversion is failed for: (.+)")


def scan_operators(model: Path) -> OperatorSupport:
    """Convert the model and ask the CPU plugin about each operation."""
    openvino = import_openvino()
    core = openvino.Core()
    try:
        converted = core.read_model(str(model))
        supported = set(core.query_model(converted, "CPU"))
    except RuntimeError as exc:
        return OperatorSupport(False, unsupported_operators(str(exc)) or (_brief(exc),))
    texts = [port.get_any_name() for port in (*converted.inputs, *converted.outputs)
             if port.get_element_type().get_type_name() == "string"]  # fmt: skip
    if texts:
        return OperatorSupport(False, tuple(f"text tensor {name}" for name in texts))
    refused = {op.get_type_name() for op in converted.get_ops() if op.get_friendly_name() not in supported}
    return OperatorSupport(not refused, tuple(sorted(refused)))


def unsupported_operators(text: str) -> tuple[str, ...]:
    """Operators that a message of the library says it cannot convert, as "domain::Op (opset n)"; () if it says none."""
    for pattern in (_NO_RULE, _FAILED_RULE):
        if match := pattern.search(text):
            return tuple(dict.fromkeys(_operator(name.strip()) for name in match.group(1).split(",")))
    return ()


def _operator(name: str) -> str:
    """Turn "Foo-21" into "Foo (opset 21)" and "com.example.Foo" into "com.example::Foo"."""
    standard, _, version = name.rpartition("-")
    if standard and version.isdigit():
        return f"{standard} (opset {version})"
    domain, _, operator = name.rpartition(".")
    return f"{domain}::{operator}" if domain else operator


def _brief(exc: Exception) -> str:
    return brief(without_source_positions(str(exc)))
