# SPDX-License-Identifier: Apache-2.0
"""Captures a module with torch.export, and says in the user's terms what cannot be captured: which line, what to do.

Source: PyTorch 2.13.0: torch.export documentation, "Control flow" and "Data-dependent errors"; torch/_dynamo/exc.py
    (UserErrorType), torch/fx/experimental/symbolic_shapes.py (GuardOnDataDependentSymNode, the log of guards).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from typing import Any

from dovetail.client.export_native import NativeModule
from dovetail.errors import DovetailError, InvalidInputError, UnsupportedError, brief
from dovetail.program.archive import rewrite
from dovetail.program.onnx_form import GUARDS_LOG, quiet
from dovetail.program.origin import origin_of_call, origin_of_error

_DATA_DEPENDENT = ("GuardOnDataDependentSymNode", "DataDependentOutputException", "DynamicOutputShapeException")
_HELP = re.compile(
    r"\s*(The error above occurred when calling|For more information|You can also|Caused by:).*", re.DOTALL
)
_MAX_PROGRAM_BYTES = 1 << 40
_INSTEAD = (
    "a graph has one path for all values: use torch.where, masks or torch.cond instead of Python's if, loops, .item(),"
    " .tolist() and int() on tensors"
)


def capture(native: NativeModule, dynamic_shapes: Any) -> Any:
    """The torch.export.ExportedProgram of a module.

    Raises:
        InvalidInputError: dynamic_shapes do not fit the module or its examples.
        UnsupportedError: The module cannot be captured.
    """
    try:
        with quiet():
            return _exported(native, dynamic_shapes)
    except Exception as exc:  # what the user's code raises under tracing, and some dozen classes of torch
        raise _explained(exc, native, dynamic_shapes) from exc


def save_program(program: Any, path: Path) -> None:
    """Write the program without its sample inputs, which torch would pickle, and without lines of the user's files.

    Raises:
        InvalidInputError: It holds something that is saved as a pickle only.
    """
    import torch

    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    whole = path.with_name(f"whole-{path.name}")
    try:
        with quiet():
            torch.export.save(program, str(whole))
    except Exception as exc:  # serialisers raise what they like for constants of a class of their own
        raise UnsupportedError(f"torch.export.save cannot write the program: {brief(str(exc), 300)}") from exc
    rewrite(whole, path, max_bytes=_MAX_PROGRAM_BYTES)
    whole.unlink()


def _exported(native: NativeModule, dynamic_shapes: Any) -> Any:
    import torch

    with torch.no_grad(), redirect_stderr(StringIO()):  # on which torch prints the graph so far, if it fails
        return torch.export.export(native.module, native.args, native.kwargs, dynamic_shapes=dynamic_shapes)


def _explained(error: Exception, native: NativeModule, dynamic_shapes: Any) -> DovetailError:
    name = type(native.module).__name__
    place = origin_of_error(error, native.module)
    at = f" at {place}" if place else ""
    if type(error).__name__ in _DATA_DEPENDENT:
        return UnsupportedError(f"{name} decides by the values of its tensors{at}; {_INSTEAD}")
    kind = getattr(getattr(error, "error_type", None), "name", "")
    if kind == "CONSTRAINT_VIOLATION":
        lines = _fixing_lines(native, dynamic_shapes)
        where = f" ({'; '.join(lines)})" if lines else ""
        return InvalidInputError(
            f"dynamic_shapes do not fit {name}{where}: {_violations(error)}. Compute with x.shape instead of a number,"
            " or leave that dimension fixed"
        )
    if type(error).__name__ == "UserError" and "dynamic_shapes" in str(error):
        return InvalidInputError(f"dynamic_shapes do not fit {name}: {_first_words(error)}")
    return UnsupportedError(
        f"torch.export cannot capture {name}{at}: {type(error).__name__}: {_first_words(error)} Use torch operators"
        " only (no NumPy, no other library on tensors), and tensors or plain containers of them as inputs and outputs"
    )


def _violations(error: Exception) -> str:
    """Which dimensions became numbers, as torch says it."""
    found = re.findall(r"- (You marked .*?)(?:\. |\n|$)", str(error)) or re.findall(r"\n\s*- ([^\n]+)", str(error))
    return brief("; ".join(found) or _first_words(error), 400)


def _first_words(error: Exception) -> str:
    """What torch says, without what it recommends to its own developers."""
    text = brief(_HELP.sub("", str(error)), 400).replace('For more information, run with TORCH_LOGS="+dynamic".', "")
    text = re.sub(r"\s+", " ", text).strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _fixing_lines(native: NativeModule, dynamic_shapes: Any) -> list[str]:
    """Lines of the module at which a free size became a number; capturing again tells, by torch's log of guards."""
    with quiet(), _guards_added(native.module) as places, suppress(Exception):  # it fails as before
        _exported(native, dynamic_shapes)
    return list(dict.fromkeys(places))[:3]


@contextmanager
def _guards_added(module: Any) -> Iterator[list[str]]:
    """Where equations between sizes were taken for granted while the block ran."""
    places: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if text.startswith("eval Eq(") and (place := origin_of_call(module)):
                places.append(place)

    logger = logging.getLogger(GUARDS_LOG)
    handlers, level, propagates = logger.handlers, logger.level, logger.propagate
    logger.handlers = [Listener(logging.INFO)]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield places
    finally:
        logger.handlers, logger.propagate = handlers, propagates
        logger.setLevel(level)
