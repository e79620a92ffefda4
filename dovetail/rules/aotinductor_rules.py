# SPDX-License-Identifier: Apache-2.0
"""AOTInductor: which compiled `.pt2` packages run on a machine. Torch itself only warns, and then runs them.

Names in `Contract.details` (written by `contract_for`; `details_from_metadata` gives the first five from the package's
own metadata, which the build copies here):

* `platform`: "linux".
* `machine`: "x86_64".
* `cpu_isa`: vector instruction set of the compiled code in torch's words: "AVX2", "AVX512 AVX512_VNNI", "ASIMD" …; ""
  unknown.
* `compute_capability`: "8.9" for CUDA packages.
* `device_key`: "cpu" or "cuda".
* `march`: what the C++ compiler was told, "native" or a level; everything that it may have used is in
  `Contract.cpu_features`.
* `torch`: version with its build tag, "2.13.0+cpu".
* `multi_arch_kernel`: True if CUDA kernels are there as PTX as well.

What the recipes are is in `aotinductor_recipes`, how a package is read in `aotinductor_package`.
"""

from __future__ import annotations

from collections.abc import Mapping

from dovetail.contract import Contract, Detail
from dovetail.fingerprint import Fingerprint
from dovetail.rules import machine
from dovetail.rules.aotinductor_isa import PORTABLE_X86, features_behind
from dovetail.rules.aotinductor_recipes import ENGINE, LIBRARY, NATIVE, contract_for, extra_recipes, prior, recipes
from dovetail.rules.base import Reason, Rule, Verdict
from dovetail.rules.versions import build_tag, minor_of, parse_version

__all__ = ["ENGINE", "LIBRARY", "RULES", "contract_for", "details_from_metadata", "extra_recipes", "prior", "recipes"]


def details_from_metadata(metadata: Mapping[str, object]) -> dict[str, Detail]:
    """A1: contract details from a package's `*_metadata.json`; what it does not say is left out.

    Source: PyTorch, torch/_inductor/codecache.py, get_device_information.
    """
    names = {
        "AOTI_PLATFORM": "platform",
        "AOTI_MACHINE": "machine",
        "AOTI_CPU_ISA": "cpu_isa",
        "AOTI_COMPUTE_CAPABILITY": "compute_capability",
        "AOTI_DEVICE_KEY": "device_key",
    }
    details: dict[str, Detail] = {name: str(metadata[key]) for key, name in names.items() if metadata.get(key)}
    capability = str(details.get("compute_capability", ""))
    if capability.isdecimal() and len(capability) >= 2:
        details["compute_capability"] = f"{capability[:-1]}.{capability[-1]}"
    return details


def a1_platform_and_machine_agree(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """A1: the package says what it was compiled for; torch only warns on a mismatch and then runs the code.

    Source: PyTorch, codecache.get_device_information; issues 191713 and 121516.
    """
    facts = fingerprint.facts
    wanted = (contract.text("platform"), machine.canonical_arch(contract.text("machine")))
    here = (facts.os, machine.canonical_arch(facts.arch))
    if wanted == here:
        return None
    needs = " ".join(wanted) if all(wanted) else "a platform and machine that the package does not name"
    return Reason("A1", Verdict.RECOMPILE, needs, " ".join(here), "build it for this machine")


def a2_instruction_set_is_covered(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """A2: compiled code of a lower instruction set is safe on a higher one, never the other way round.

    Source: PyTorch issue 191904; torch/_inductor/cpu_vec_isa.py.
    """
    isa = contract.text("cpu_isa").upper()
    needed = features_behind(isa)
    portable = fingerprint.facts.cpu_features >= PORTABLE_X86
    way_out = "build the fleet flavour, aoti-cpu-v3" if portable else "build aoti-cpu on a CPU of this class"
    if needed is None and not isa and contract.text("march") == NATIVE:
        needs, has = "a build on a CPU with no more features than its own", "others, which -march=native would use"
        return Reason("A2", Verdict.RECOMPILE, needs, has, way_out)
    if needed is None:
        has = "no knowledge of that instruction set"
        return Reason("A2", Verdict.RECOMPILE, isa or "an instruction set that it does not name", has, way_out)
    missing = needed - fingerprint.facts.cpu_features
    if not missing:
        return None
    return Reason("A2", Verdict.RECOMPILE, isa, f"a CPU without {', '.join(sorted(missing))}", way_out)


def a3_cuda_kernels_fit_the_gpu(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """A3: CUDA kernels are for one compute capability; with PTX inside also for newer ones, untuned.

    Source: PyTorch issue 153697 ("not cross compilation"), pull requests 165243 and 185328 (multi-arch kernels).
    """
    if contract.device != "cuda" and contract.text("device_key") != "cuda":
        return None
    wanted = parse_version(contract.text("compute_capability"))
    here = [parse_version(gpu.compute_capability) for gpu in fingerprint.accelerators("nvidia_gpu")]
    needs = f"a GPU of compute capability {contract.text('compute_capability') or 'that it does not name'}"
    has = ", ".join(gpu.compute_capability for gpu in fingerprint.accelerators("nvidia_gpu")) or "no NVIDIA GPU"
    if not here:
        return Reason("A3", Verdict.UNSUPPORTED, needs, has, "use an artifact for device cpu")
    if wanted and wanted in here:
        return None
    if wanted and contract.flag("multi_arch_kernel") and max(here) > wanted:
        return Reason("A3", Verdict.SUBOPTIMAL, needs, f"{has}: kernels tuned on another GPU", "build it on this GPU")
    return Reason("A3", Verdict.RECOMPILE, needs, has, "build it on this GPU")


def a4_torch_is_the_same(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """A4: the package format is a prototype without compatibility promise: same torch release line and build tag.

    Source: PyTorch documentation, "AOTInductor" ("prototype … subject to backwards compatibility breaking changes").
    """
    library = fingerprint.runtime(LIBRARY)
    if library is None:
        return None
    wanted = contract.text("torch")
    if wanted and minor_of(wanted) == minor_of(library.version) and build_tag(wanted) == build_tag(library.version):
        return None
    needs = f"torch {minor_of(wanted) or 'that it does not name'}.x with build tag {build_tag(wanted) or 'none'}"
    return Reason("A4", Verdict.RECOMPILE, needs, f"torch {library.version}", "build it with this torch")


RULES: tuple[Rule, ...] = (
    machine.library_installed(LIBRARY, "pip install 'dovetail[torch]'"),
    machine.arch_fits,
    machine.cpu_features_present,
    machine.memory_fits,
    a1_platform_and_machine_agree,
    a2_instruction_set_is_covered,
    a3_cuda_kernels_fit_the_gpu,
    a4_torch_is_the_same,
)
