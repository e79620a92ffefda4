# SPDX-License-Identifier: Apache-2.0
"""torch itself, eager and torch.compile: baselines that are measured so that users see what compilation buys.

They pass the gate and are benchmarked like every artifact, and are never offered nor served: to run one means to open a
foreign program with torch's Python package, which only a confined child may do. `Contract.baseline` says so to whoever
negotiates.

Names in `Contract.details`: `baseline` (True), `mode` (as below), `torch` (version with its build tag), `isa` (the
canonical instruction set class of the machine that measures).
Names in `Recipe.options`: `mode` ("eager", "default" or another mode of torch.compile), `program` (release of torch
that exported the program).

Source: PyTorch 2.13 documentation, "torch.compile" (modes).
"""

from __future__ import annotations

from dovetail.contract import Contract, Detail
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import isa_class
from dovetail.recipe import Recipe
from dovetail.rules import machine
from dovetail.rules.base import ModelFacts, Reason, Rule, Verdict
from dovetail.rules.versions import minor_of

ENGINE = "torch"

EAGER = "eager"
MODES = {
    "torch-eager": EAGER,
    "torch-compile": "default",
    "torch-compile-reduce-overhead": "reduce-overhead",
    "torch-compile-max-autotune": "max-autotune",
    "torch-compile-max-autotune-no-cudagraphs": "max-autotune-no-cudagraphs",
}
"""Recipe -> mode. On the CPU there are no CUDA graphs, so modes that differ only by them are equal there."""


def recipes(fingerprint: Fingerprint, model: ModelFacts) -> tuple[Recipe, ...]:
    """None: nobody is served by a baseline."""
    return ()


def extra_recipes(fingerprint: Fingerprint, model: ModelFacts) -> tuple[Recipe, ...]:
    """One for each mode and device, for models with a program where torch is installed."""
    library = fingerprint.runtime(ENGINE)
    if not model.program or library is None:
        return ()
    found = [_recipe(name, mode, "cpu", model) for name, mode in MODES.items()]
    if "cuda" in library.devices and fingerprint.accelerators("nvidia_gpu"):
        found += [_recipe(f"{name}-cuda", mode, "cuda", model) for name, mode in MODES.items()]
    return tuple(found)


def _recipe(name: str, mode: str, device: str, model: ModelFacts) -> Recipe:
    return Recipe(name, ENGINE, device, "fp32", {"mode": mode, "program": model.program})


def contract_for(recipe: Recipe, model: ModelFacts, builder: Fingerprint, target: Fingerprint) -> Contract:
    """A baseline of the builder's torch, for the target's architecture."""
    library = builder.runtime(ENGINE) or target.runtime(ENGINE)
    details: dict[str, Detail] = {
        "baseline": True,
        "mode": str(recipe.options.get("mode", EAGER)),
        "torch": library.version if library else "",
        "isa": _isa(builder),
    }
    arch = machine.canonical_arch(target.facts.arch)
    return Contract(ENGINE, recipe.device, recipe.precision, arches=frozenset({arch}), details=details)


def prior(contract: Contract, fingerprint: Fingerprint) -> float:
    """0: it promises nothing, because it is never served; a search tries it last."""
    return 0.0


def same_torch_line(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """The torch that measures is the one that was planned with; another one would be another baseline."""
    library = fingerprint.runtime(ENGINE)
    wanted = minor_of(contract.text("torch"))
    if library is None or wanted == minor_of(library.version) != "":
        return None
    needs = f"torch {wanted or 'that it does not name'}.x"
    return Reason("torch", Verdict.RECOMPILE, needs, f"torch {library.version}", "measure it with this torch")


def measured_on_its_own_cpu(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """The CPU is the one whose figures these are: an emulated one would say nothing about time."""
    wanted, here = contract.text("isa"), _isa(fingerprint)
    if wanted == here:
        return None
    return Reason("isa", Verdict.RECOMPILE, f"a CPU of class {wanted}", here, "measure it on this class")


def _isa(fingerprint: Fingerprint) -> str:
    return isa_class(fingerprint.facts.arch, fingerprint.facts.cpu_features)


RULES: tuple[Rule, ...] = (
    machine.library_installed(ENGINE, "pip install 'dovetail[torch]'"),
    machine.arch_fits,
    machine.memory_fits,
    same_torch_line,
    measured_on_its_own_cpu,
)
