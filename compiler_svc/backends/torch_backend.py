# SPDX-License-Identifier: Apache-2.0
"""Prepares baselines: the program itself with the signature that the model has, to be run by torch and measured.

Nothing is compiled here: torch.compile works when a session is loaded, in the processes that judge and measure. They
are children of this one, as confined as it is, and share the compilers' cache that is set up here, so that only the
first of them compiles.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from collections.abc import Mapping
from pathlib import Path

from compiler_svc.backends.aotinductor_backend import COMPILER, compiler_version, find_compiler
from compiler_svc.backends.base import BuildInput, BuildOutput, OperatorSupport
from compiler_svc.backends.torch_program import program_of, signature_of, work_in
from dovetail.engines.torch_engine import PROGRAM, SIGNATURE
from dovetail.errors import UnsupportedError
from dovetail.program.loading import load_program
from dovetail.recipe import Recipe
from dovetail.rules.torch_rules import EAGER, MODES

ENGINE = "torch"
ADAPTER_REVISION = "1"
"""Part of every artifact key: raise it whenever a change here changes the bytes that are built."""

NEEDS_PROGRAM = True
"""It runs the exported program, so models without one are not offered to it."""


def toolchain() -> Mapping[str, str]:
    """Exact versions of everything that touches what is measured; empty if torch is not installed."""
    if missing():
        return {}
    versions = {"torch": importlib.metadata.version("torch"), COMPILER: compiler_version() or "none"}
    return {**versions, "dovetail-torch-backend": ADAPTER_REVISION}


def missing() -> str:
    """Why this backend cannot build here, or ""."""
    return "" if importlib.util.find_spec("torch") else "torch is not installed: pip install 'dovetail[torch]'"


def scan(model: Path) -> OperatorSupport:
    """Everything: it runs the program, whose operators are torch's, and never the ONNX graph."""
    return OperatorSupport(True)


def quantisable_nodes(model: Path, recipe: Recipe) -> tuple[str, ...]:
    """None: a baseline is the program as it is."""
    return ()


def build(order: BuildInput) -> BuildOutput:
    """Put the program and its signature side by side.

    Raises:
        UnsupportedError: There is no program, it is not the model's, there is no such mode, or what the mode needs is
            not here.
        InvalidInputError: torch cannot read the program.
    """
    program_file = program_of(order)
    mode = str(order.recipe.options.get("mode", ""))
    if mode not in MODES.values():
        raise UnsupportedError(
            f"recipe {order.recipe.name}: there is no mode {mode!r}, only {', '.join(MODES.values())}"
        )
    if mode != EAGER and order.recipe.device == "cpu" and find_compiler() is None:
        raise UnsupportedError(f"torch.compile needs the C++ compiler {COMPILER}: apt install g++")
    work_in(order.scratch.parent / "inductor")  # stays, unlike a folder of the build's own: sessions compile later
    order.report(0.2, "opening the program")
    signature = signature_of(load_program(program_file), order.inputs, order.outputs)
    program, description = order.scratch / PROGRAM, order.scratch / SIGNATURE
    shutil.copyfile(program_file, program)
    description.write_text(signature.to_text(), encoding="utf-8")
    labels = {"baseline": f"torch {importlib.metadata.version('torch')}, {mode}; measured for comparison, never served"}
    return BuildOutput({PROGRAM: program, SIGNATURE: description}, order.contract, labels)
