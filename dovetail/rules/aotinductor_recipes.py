# SPDX-License-Identifier: Apache-2.0
"""AOTInductor: what a machine could use, what its contract says, and how fast to expect it.

Apart from `aotinductor_rules` (which says what fits) only to keep both readable; the names in `Contract.details` are
documented there. Names in `Recipe.options`:

* `march`: what the C++ compiler is told by -march (inductor's cpp.march): "native" or a level such as "x86-64-v3".
* `simdlen`: bits of the vector instruction set (inductor's cpp.simdlen); 0 lets torch take the largest.
* `multi_arch_kernel`: CUDA kernels also as PTX, for newer GPUs than the builder's (emit_multi_arch_kernel).
* `tf32`: CUDA matrix products and convolutions in tf32.
* `program`: release of torch that exported the program.

Recipes: `aoti-cpu` is for the target's own instruction set and is built natively, on a CPU that has the same features;
`aoti-cpu-v3` is for every x86-64-v3 CPU; `aoti-cuda` is for the builder's GPU. All compute in fp32 (or tf32): the
program's own types are what is compiled.
"""

from __future__ import annotations

from dovetail.contract import Contract, Detail
from dovetail.fingerprint import Fingerprint
from dovetail.recipe import Option, Recipe
from dovetail.rules import machine
from dovetail.rules.aotinductor_isa import PORTABLE_X86, features_behind, native_features, torch_isa
from dovetail.rules.base import ModelFacts
from dovetail.rules.versions import minor_of

ENGINE = "aotinductor"
LIBRARY = "torch"
NATIVE = "native"

_V3 = "x86-64-v3"


def recipes(fingerprint: Fingerprint, model: ModelFacts) -> tuple[Recipe, ...]:
    """What is built by itself: for models with a program, on machines with the torch line that exported it."""
    if not model.program or not _same_line(fingerprint, model):
        return ()
    return _default(fingerprint, model)


def extra_recipes(fingerprint: Fingerprint, model: ModelFacts) -> tuple[Recipe, ...]:
    """The same for machines with another torch than the program's, which may or may not load it, and more for CUDA."""
    if not model.program or fingerprint.runtime(LIBRARY) is None:
        return ()
    found = () if _same_line(fingerprint, model) else _default(fingerprint, model)
    if not _has_cuda(fingerprint):
        return found
    return (
        *found,
        _cuda("aoti-cuda-multi", fingerprint, model, multi_arch_kernel=True),
        _cuda("aoti-cuda-tf32", fingerprint, model, tf32=True),
    )


def _default(fingerprint: Fingerprint, model: ModelFacts) -> tuple[Recipe, ...]:
    on_x86 = machine.is_x86(fingerprint)
    if not on_x86 and not machine.is_arm64(fingerprint):
        return ()
    portable = on_x86 and fingerprint.facts.cpu_features >= PORTABLE_X86
    found = [Recipe("aoti-cpu", ENGINE, "cpu", "fp32", _options(model, march=NATIVE, simdlen=0))]
    if portable:
        found.insert(0, Recipe("aoti-cpu-v3", ENGINE, "cpu", "fp32", _options(model, march=_V3, simdlen=256)))
    if _has_cuda(fingerprint):
        found.append(_cuda("aoti-cuda", fingerprint, model))
    return tuple(found)


def _cuda(
    name: str, fingerprint: Fingerprint, model: ModelFacts, *, multi_arch_kernel: bool = False, tf32: bool = False
) -> Recipe:
    """The code around the kernels is portable where there is a portable level."""
    portable = machine.is_x86(fingerprint) and fingerprint.facts.cpu_features >= PORTABLE_X86
    options = _options(model, march=_V3 if portable else NATIVE, simdlen=256 if portable else 0)
    chosen: dict[str, Option] = {**options, "multi_arch_kernel": multi_arch_kernel, "tf32": tf32}
    return Recipe(name, ENGINE, "cuda", "tf32" if tf32 else "fp32", chosen)


def _options(model: ModelFacts, *, march: str, simdlen: int) -> dict[str, Option]:
    return {"march": march, "simdlen": simdlen, "program": model.program}


def _same_line(fingerprint: Fingerprint, model: ModelFacts) -> bool:
    library = fingerprint.runtime(LIBRARY)
    return library is not None and minor_of(library.version) == minor_of(model.program) != ""


def _has_cuda(fingerprint: Fingerprint) -> bool:
    library = fingerprint.runtime(LIBRARY)
    return library is not None and "cuda" in library.devices and bool(fingerprint.accelerators("nvidia_gpu"))


def contract_for(recipe: Recipe, model: ModelFacts, builder: Fingerprint, target: Fingerprint) -> Contract:
    """What the package will need as planned; the build replaces it by what the package says.

    A native build holds what the builder's CPU has. For a target without all of that its instruction set is left
    unnamed, so that rule A2 keeps such a builder from it.
    """
    library = builder.runtime(LIBRARY) or target.runtime(LIBRARY)
    arch = machine.canonical_arch(target.facts.arch)
    native = str(recipe.options.get("march", NATIVE)) == NATIVE
    details: dict[str, Detail] = {
        "platform": target.facts.os,
        "machine": arch,
        "cpu_isa": torch_isa(arch, target.facts.cpu_features) if native else "AVX2",
        "device_key": recipe.device,
        "march": str(recipe.options.get("march", NATIVE)),
        "torch": library.version if library else "",
    }
    features = native_features(arch, target.facts.cpu_features) if native else PORTABLE_X86
    if (
        native
        and not native_features(machine.canonical_arch(builder.facts.arch), builder.facts.cpu_features) <= features
    ):
        details["cpu_isa"] = ""
    if recipe.device == "cuda":
        details["compute_capability"] = next((gpu.compute_capability for gpu in builder.accelerators("nvidia_gpu")), "")
        details["multi_arch_kernel"] = bool(recipe.options.get("multi_arch_kernel", False))
    return Contract(ENGINE, recipe.device, recipe.precision, frozenset({arch}), features, details=details)


def covers(contract: Contract, isa: str) -> bool:
    """True if a package whose kernels are for that instruction set needs no more than the contract says."""
    needed = features_behind(isa)
    return needed is not None and needed <= contract.cpu_features


def prior(contract: Contract, fingerprint: Fingerprint) -> float:
    """Speed relative to ONNX Runtime fp32 here. Prior, unmeasured; all are guesses.

    It fuses more than ONNX Runtime and calls the same kind of library for products and convolutions.
    """
    if contract.device == "cuda":
        return 5.0
    return 1.0 if contract.text("march") == NATIVE else 0.95
