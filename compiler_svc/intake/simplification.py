# SPDX-License-Identifier: Apache-2.0
"""Simplifies a normalised model, and keeps the result only if it is shown to compute the same.

What lives here: deciding. The rewriting itself is done by onnxslim in a process of its own (`simplifier`), comparing is
`equivalence`'s business. Nothing that goes wrong here refuses a model: it is then built as it was pushed, and a note
says why.

Names of nodes that remain are the pushed ones, since recipes name nodes.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from compiler_svc.intake import graph
from compiler_svc.intake.equivalence import Comparison, Verdict
from compiler_svc.intake.limits import ModelLimits
from compiler_svc.intake.model_digest import model_digest
from compiler_svc.intake.normalise import normalise
from compiler_svc.intake.signature import signature
from dovetail.errors import DovetailError

PROGRAM = ("-m", "compiler_svc.intake.simplifier")
_GROWTH = 1.1  # constants may be folded into larger ones; beyond this the model is no simpler for it
_SLACK_BYTES = 64 << 10
_LESS = 0.99  # of the bytes of all tensors: equal weights shared, if that is worth an exchange

Compare = Callable[[Path, Path], Comparison]
"""Compares the file before with the file after."""


@dataclass(frozen=True, slots=True)
class Simplified:
    """What came of it.

    Attributes:
        model: The model to build from: the simplified one, or the one that was given.
        note: What changed, or why nothing did; "" if there was nothing to gain.
    """

    model: Any
    note: str


class _KeptError(Exception):
    """The model stays as it is; the text says why."""


def simplify(
    model: Any, scratch: Path, limits: ModelLimits, compare: Compare, *, program: tuple[str, ...] = PROGRAM
) -> Simplified:
    """Simplify a model in the normal form.

    Args:
        model: Self-contained and normalised; not changed.
        scratch: Directory of our own for two files of the model's size, removed again.
        limits: How large a model and how many seconds.
        compare: Compares two files.
        program: Python arguments that start the simplifier.
    """
    if limits.simplify_s <= 0:
        return Simplified(model, "")
    source, result = scratch / "source.onnx", scratch / "simplified.onnx"
    try:
        _refuse_large(model, limits)
        if importlib.util.find_spec("onnxslim") is None:
            raise _KeptError("onnxslim is not installed")
        source.write_bytes(model.SerializeToString(deterministic=True))
        _run(source, result, limits, program)
        simplified = _read(result, limits)
        if model_digest(simplified) == model_digest(model):
            return Simplified(model, "")
        _refuse_other(model, simplified)
        if not _is_simpler(model, simplified):
            return Simplified(model, "")
        result.write_bytes(simplified.SerializeToString(deterministic=True))
        outcome = compare(source, result)
        if outcome.verdict is Verdict.DIFFERENT:
            raise _KeptError(f"the simplified graph computes something else: {outcome.why}")
        if outcome.verdict is Verdict.UNKNOWN:
            raise _KeptError(f"it could not be shown to compute the same: {outcome.why}")
        return Simplified(simplified, _note(model, simplified))
    except _KeptError as exc:
        return Simplified(model, f"not simplified: {exc}")
    finally:
        for path in (source, result, result.with_suffix(".partial")):
            path.unlink(missing_ok=True)


def _refuse_large(model: Any, limits: ModelLimits) -> None:
    size = graph.tensor_bytes(model)
    if size > limits.simplify_bytes:
        raise _KeptError(f"its tensors take {size} bytes, models up to {limits.simplify_bytes} are")


def _run(source: Path, result: Path, limits: ModelLimits, program: tuple[str, ...]) -> None:
    command = [sys.executable, "-P", *program, str(source), str(result)]
    try:
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=limits.simplify_s, check=False)
    except subprocess.TimeoutExpired:
        raise _KeptError(f"onnxslim was not done within {limits.simplify_s:g} s") from None
    except OSError as exc:
        raise _KeptError(f"onnxslim could not be started ({type(exc).__name__})") from exc
    if ended.returncode != 0 or not result.is_file():
        raise _KeptError(f"onnxslim failed on it (status {ended.returncode})")


def _read(result: Path, limits: ModelLimits) -> Any:
    """The result in the normal form, under the limits that the pushed model was under."""
    try:
        simplified = onnx.ModelProto.FromString(result.read_bytes())
        graph.check_limits(simplified, limits)
        onnx.checker.check_model(simplified)
        return normalise(simplified)
    except (DecodeError, DovetailError, onnx.checker.ValidationError) as exc:
        raise _KeptError(f"onnxslim gave no valid model: {' '.join(str(exc).split())[:200]}") from exc


def _refuse_other(model: Any, simplified: Any) -> None:
    """Refuse results with another signature, and those that are larger."""
    try:
        same = signature(simplified) == signature(model) and _dimension_names(simplified) == _dimension_names(model)
    except DovetailError:
        same = False
    if not same:
        raise _KeptError("onnxslim changed its inputs or outputs")
    before, after = graph.tensor_bytes(model), graph.tensor_bytes(simplified)
    if after > before * _GROWTH + _SLACK_BYTES:
        raise _KeptError(f"its constants would grow from {before} to {after} bytes")


def _is_simpler(model: Any, simplified: Any) -> bool:
    """True if there is less of it: onnxslim also sorts nodes anew, for which alone no graph is exchanged."""
    fewer = _node_count(simplified) < _node_count(model)
    return fewer or graph.tensor_bytes(simplified) < _LESS * graph.tensor_bytes(model)


def _node_count(model: Any) -> int:
    return sum(1 for _ in graph.nodes(model))


def _dimension_names(model: Any) -> list[list[str]]:
    values = (*model.graph.input, *model.graph.output)
    return [[dim.dim_param for dim in value.type.tensor_type.shape.dim] for value in values]


def _note(model: Any, simplified: Any) -> str:
    version = importlib.metadata.version("onnxslim")
    counts = f"{_node_count(model)} -> {_node_count(simplified)} nodes"
    return f"simplified by onnxslim {version}: {counts}, same results"
