# SPDX-License-Identifier: Apache-2.0
"""Builds AOTInductor packages from programs of torch.export: one compiled library for one kind of machine.

What lives here: the surface of the backend and the order of a build. How a package is compiled is in
`aotinductor_compile`, what is shared with the baselines in `torch_program`, the recipe's options are documented in
`dovetail.rules.aotinductor_recipes`. Whether a machine can run the result is the rules' business; this build makes sure
that the contract says no less than the package does.

Foreign programs and the C++ compiler run in the build's confined child only. The bytes are not reproducible: the
library holds the name of the folder that it was compiled in. What it computes is.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from compiler_svc.backends.aotinductor_compile import compile_package
from compiler_svc.backends.base import BuildInput, BuildOutput, OperatorSupport
from compiler_svc.backends.torch_program import program_of, signature_of, work_in
from dovetail.contract import Contract
from dovetail.errors import BuildFailedError, InvalidInputError, PreconditionError, UnsupportedError, brief
from dovetail.program.loading import load_program
from dovetail.recipe import Recipe
from dovetail.rules.aotinductor_isa import features_behind
from dovetail.rules.aotinductor_package import FILE, Package, read_package
from dovetail.rules.aotinductor_rules import details_from_metadata
from dovetail.rules.machine import canonical_arch

ENGINE = "aotinductor"
ADAPTER_REVISION = "1"
"""Part of every artifact key: raise it whenever a change here changes the bytes that are built."""

NEEDS_PROGRAM = True
"""It builds from the exported program, so models without one are not offered to it."""

COMPILER = "g++"
"""What torch calls on Linux unless it is told otherwise (inductor's cpp.cxx)."""

_VERSION_TIMEOUT_S = 10.0


def toolchain() -> Mapping[str, str]:
    """Exact versions of everything that touches the bytes; empty if something needed is not installed."""
    if missing():
        return {}
    return {
        "torch": importlib.metadata.version("torch"),
        COMPILER: compiler_version(),
        "dovetail-aotinductor-backend": ADAPTER_REVISION,
    }


def missing() -> str:
    """Why this backend cannot build here, or ""."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed: pip install 'dovetail[torch]'"
    if find_compiler() is None:
        return f"there is no C++ compiler {COMPILER} in {os.defpath}: apt install g++"
    return ""


def find_compiler() -> str | None:
    """Path of the C++ compiler; looked for where the build's child, which has no other PATH, finds it."""
    return shutil.which(COMPILER, path=os.defpath)


def compiler_version() -> str:
    """Version of the C++ compiler, "12.2.0"; "" if it does not say."""
    program = find_compiler()
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, "-dumpfullversion"], capture_output=True, text=True, timeout=_VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.match(r"[\d.]+", done.stdout)
    return match.group() if match else ""


def scan(model: Path) -> OperatorSupport:
    """Everything: it compiles the program, whose operators are torch's, and never the ONNX graph."""
    return OperatorSupport(True)


def quantisable_nodes(model: Path, recipe: Recipe) -> tuple[str, ...]:
    """None: the program's own types are what is compiled."""
    return ()


def build(order: BuildInput) -> BuildOutput:
    """Build one recipe.

    Raises:
        UnsupportedError: There is no program, no GPU for a CUDA package, or the program is not the model's.
        BuildFailedError: torch or the C++ compiler failed, or the package needs more than the contract says.
    """
    program_file = program_of(order)
    work = order.scratch / "work"
    work_in(work / "inductor")
    try:
        order.report(0.05, "opening the program")
        program = load_program(program_file)
        signature = signature_of(program, order.inputs, order.outputs)
        order.report(0.2, "compiling")
        package = order.scratch / FILE
        compile_package(
            program, signature, package, recipe=order.recipe, contract=order.contract, threads=order.threads
        )
        order.report(0.95, "reading what it is for")
        contract = held_against(order.contract, _read(package))
    except (UnsupportedError, BuildFailedError, PreconditionError, InvalidInputError, MemoryError):
        raise
    except Exception as exc:  # torch raises its own families and the standard ones, undocumented
        raise BuildFailedError(f"torch could not build {order.recipe.name}: {_brief(exc, order.scratch)}") from exc
    finally:
        shutil.rmtree(work, ignore_errors=True)
    labels = {"march": order.contract.text("march"), "cpu_isa": contract.text("cpu_isa")}
    return BuildOutput({FILE: package}, contract, labels)


def held_against(contract: Contract, package: Package) -> Contract:
    """The contract with what the package says of itself.

    Raises:
        BuildFailedError: The package is for another kind of machine than planned, or needs a larger instruction set.
    """
    found = details_from_metadata(package.metadata)
    isa = str(found.get("cpu_isa", ""))
    needed = features_behind(isa)
    if needed is None or not needed <= contract.cpu_features:
        lacking = ", ".join(sorted((needed or frozenset()) - contract.cpu_features)) or "a known instruction set"
        raise BuildFailedError(
            f"the package is compiled for {isa or 'nothing that it names'}, and its contract does not ask for {lacking}"
            "; build it on a CPU of the target's class, or build aoti-cpu-v3"
        )
    here = {"platform": sys.platform, "machine": canonical_arch(platform.machine()), "device_key": contract.device}
    for name, value in here.items():
        wanted = canonical_arch(contract.text(name))
        if canonical_arch(str(found.get(name, ""))) != value or wanted != value:
            raise BuildFailedError(f"the package is for {name} {found.get(name)!r}, its contract for {wanted!r}")
    capability = str(found.get("compute_capability", ""))
    if contract.device == "cuda" and capability != contract.text("compute_capability"):
        raise BuildFailedError(
            f"the package is for a GPU of compute capability {capability or 'that it does not name'}, its contract for "
            f"{contract.text('compute_capability')}"
        )
    return replace(contract, details={**contract.details, **found})


def _read(path: Path) -> Package:
    with path.open("rb") as file:
        try:
            return read_package(file)
        except InvalidInputError as exc:
            raise BuildFailedError(f"torch wrote a package that cannot be served: {exc}") from exc


def _brief(exc: Exception, scratch: Path) -> str:
    """The last line that says something, without paths of this machine."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    text = lines[-1] if lines else type(exc).__name__
    return brief(text.replace(str(scratch), "<build>").replace(sys.prefix, "<python>"))
