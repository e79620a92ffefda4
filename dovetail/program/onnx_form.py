# SPDX-License-Identifier: Apache-2.0
"""Converts an exported program to ONNX with torch's own exporter, and says in one message what ONNX has no form for.

Blocks for seconds to minutes. Programs of others are converted in a confined child process only.

Source: PyTorch 2.13.0, torch.onnx.export(dynamo=True); torch/onnx/_internal/exporter/_core.py and _dispatching.py for
    the list of operators without a form, which the exporter itself tells one at a time.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dovetail.errors import InvalidInputError, UnsupportedError, brief
from dovetail.program.naming import input_nodes, output_names
from dovetail.program.reference import EXPORTED_BY

GUARDS_LOG = "torch.fx.experimental.symbolic_shapes"
"""Logger with handlers of its own, on which torch prints whole graphs."""

_NAMED = 20  # operators in a message
_LOUD = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export", "torch._export", "torch.fx", GUARDS_LOG)


@dataclass(frozen=True, slots=True)
class OnnxForm:
    """The ONNX form of a program.

    Attributes:
        path: The .onnx file; weights of 2 GB and more are in `<name>.data` beside it.
        inputs: Names of its inputs, in order.
        outputs: Names of its outputs, in order.
    """

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def tools() -> str:
    """Which tools convert here: "torch 2.13.0, onnxscript 0.7.2"."""
    release = importlib.metadata.version("torch").partition("+")[0]
    return f"torch {release}, onnxscript {importlib.metadata.version('onnxscript')}"


def write_onnx(program: Any, path: Path, *, opset: int, names: Sequence[str] = ()) -> OnnxForm:
    """Convert and write.

    Args:
        program: A torch.export.ExportedProgram.
        path: File to write.
        opset: Of ai.onnx.
        names: Of the outputs; default: as `naming.output_names`.

    Raises:
        InvalidInputError: Another number of names than outputs.
        UnsupportedError: onnx or onnxscript is not installed, or ONNX has no form for some operators; all are named.
    """
    inputs, outputs = tuple(input_nodes(program)), output_names(program)
    if names and len(names) != len(outputs):
        raise InvalidInputError(f"{len(names)} output names for {len(outputs)} outputs ({', '.join(outputs)})")
    outputs = tuple(names) or outputs
    for name in (*inputs, *outputs):
        if not name.isprintable() or "/" in name or [*inputs, *outputs].count(name) > 1:
            raise InvalidInputError(f"the name {name[:80]!r} is used twice or not printable; give other output_names")
    with quiet():
        converted = _converted(program, opset, inputs, outputs)
        _free_names(converted.model.graph, frozenset(outputs))
        converted.model.metadata_props[EXPORTED_BY] = tools()
        converted.save(str(path))
    return OnnxForm(path, inputs, outputs)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's notices (packages that are not installed, its own deprecations) from the user's terminal."""
    levels = {name: logging.getLogger(name).level for name in _LOUD}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in _LOUD:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def _converted(program: Any, opset: int, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Any:
    try:
        import onnxscript  # noqa: F401  (torch's exporter asks for it late, in words of its own)
        import torch
    except ImportError as exc:
        raise UnsupportedError(
            f"{exc.name} is not installed, which writes ONNX: pip install 'dovetail[torch]'"
        ) from exc
    try:
        return torch.onnx.export(
            program, dynamo=True, opset_version=opset, verbose=False, input_names=inputs, output_names=outputs
        )
    except torch.onnx.errors.OnnxExporterError as exc:
        missing = _without_form(program)
        if missing:
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            raise UnsupportedError(
                f"ONNX has no form for {len(missing)} of the operators: {', '.join(missing[:_NAMED])}{more}. Write them"
                " with other operators, or leave that part out of the module"
            ) from exc
        raise UnsupportedError(f"torch cannot convert the program to ONNX: {_cause(exc)}") from exc


def _free_names(graph: Any, outputs: frozenset[str]) -> None:
    """Rename values inside the graph that have an output's name; the exporter names outputs without looking.

    Source: seen with torch 2.13.0: "Duplicate definition of name" for a module with a part of its output's name.
    """
    taken = outputs | {value.name for node in graph.all_nodes() for value in node.outputs}
    shown = {id(value) for value in graph.outputs}
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.name in outputs and id(value) not in shown:
                value.name = next(name for count in itertools.count() if (name := f"{value.name}_{count}") not in taken)
                taken |= {value.name}


def _without_form(program: Any) -> list[str]:
    """Operators that the exporter has no translation for, each with the line that calls it; empty if it cannot tell."""
    from dovetail.program.origin import origin_of

    found: dict[str, str] = {}
    with suppress(Exception):  # private functions of torch: any release may change them, and the cause is told anyway
        from torch.onnx._internal.exporter import _core, _dispatching, _registration

        registry = _registration.ONNXRegistry.from_torchlib()
        prepared = _core._prepare_exported_program_for_export(program, registry=registry)
        for node in prepared.graph.nodes:
            if node.op == "call_function" and not _is_builtin(node.target):
                function, _ = _dispatching.dispatch(node, registry)
                if function is None:
                    found.setdefault(str(node.target), origin_of(node))
    return [f"{name}{f' ({place})' if place else ''}" for name, place in sorted(found.items())]


def _is_builtin(target: Any) -> bool:
    """True for what the exporter handles itself: getitem and arithmetic of sizes."""
    return getattr(target, "__module__", "") in ("_operator", "math")


def _cause(error: BaseException) -> str:
    """The first cause's text on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return brief(str(error), 300)
