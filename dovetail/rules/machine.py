# SPDX-License-Identifier: Apache-2.0
"""Rules that hold for every engine: library installed, architecture, CPU features, memory.

They are apart from the engines' rules because they know no file format. Each engine lists them in its `RULES`, so a
caller that runs an engine's rules has run these too. Names in `Contract.details` that are read here: none.
"""

from __future__ import annotations

from dovetail.contract import Contract
from dovetail.fingerprint import Accelerator, Fingerprint
from dovetail.rules.base import Reason, Rule, Verdict

X86_ARCHES = frozenset({"x86_64", "amd64"})
ARM64_ARCHES = frozenset({"aarch64", "arm64"})

HEADROOM = 1.25
"""Free memory over needed memory below which loading is called tight. Ours, unmeasured: the build measures the peak of
a fresh process, and an allocator that has served for a while holds more."""

_ARCH_ALIASES = {"amd64": "x86_64", "arm64": "aarch64"}
ACCELERATOR_OF_DEVICE = {"cuda": "nvidia_gpu", "gpu": "intel_gpu", "npu": "intel_npu"}
"""Device word of an artifact -> kind of the accelerator that runs it."""


def canonical_arch(arch: str) -> str:
    """One name for each architecture: "amd64" is "x86_64", "arm64" is "aarch64"."""
    return _ARCH_ALIASES.get(arch, arch)


def is_x86(fingerprint: Fingerprint) -> bool:
    """True for 64-bit x86."""
    return fingerprint.facts.arch in X86_ARCHES


def is_arm64(fingerprint: Fingerprint) -> bool:
    """True for 64-bit ARM."""
    return fingerprint.facts.arch in ARM64_ARCHES


def library_installed(library: str, install: str) -> Rule:
    """A rule that asks for an inference library.

    Args:
        library: Name in the fingerprint's `runtimes`.
        install: Command that installs it, for the way out.
    """

    def library_is_installed(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
        if fingerprint.runtime(library) is not None:
            return None
        others = ", ".join(sorted(fingerprint.facts.runtimes)) or "no inference library"
        return Reason("library", Verdict.UNSUPPORTED, f"{library} to run {contract.engine} artifacts", others, install)

    return library_is_installed


def arch_fits(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """The artifact's code or flavour is for this CPU architecture. An empty set of architectures means any."""
    arch = canonical_arch(fingerprint.facts.arch)
    if not contract.arches or arch in {canonical_arch(name) for name in contract.arches}:
        return None
    wanted = " or ".join(sorted(contract.arches))
    return Reason("arch", Verdict.RECOMPILE, f"a {wanted} CPU", arch, f"build the {contract.engine} flavour for {arch}")


def cpu_features_present(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """Every usable core has every CPU feature that the artifact's code uses; otherwise it would die of SIGILL.

    Source: PyTorch issues 121516 and 191713 (illegal instruction where compiled code meets a smaller instruction set).
    """
    missing = contract.cpu_features - fingerprint.facts.cpu_features
    if not missing:
        return None
    return Reason(
        "cpu-features",
        Verdict.RECOMPILE,
        f"the CPU features {', '.join(sorted(contract.cpu_features))}",
        f"a CPU without {', '.join(sorted(missing))}",
        "build it for this machine's instruction set",
    )


def memory_fits(contract: Contract, fingerprint: Fingerprint) -> Reason | None:
    """There is room to load it: UNSUPPORTED where it cannot be loaded now, SUBOPTIMAL where it barely can.

    The memory meant is the device's own, or the machine's for the CPU and for devices that share it. An artifact whose
    need was not measured (0) passes, and so does any where the machine's memory is not known.
    """
    need = contract.min_memory_bytes
    ever, now = memory_of(contract.device, fingerprint)
    if need <= 0 or ever <= 0:
        return None
    if need > ever:
        way_out = "use a smaller artifact of this model, such as an int8 one"
        return Reason("memory", Verdict.UNSUPPORTED, _mib(need), f"{_mib(ever)} in all", way_out)
    if need > now:
        way_out = f"free {_mib(need - now)}, or use a smaller artifact of this model"
        return Reason("memory", Verdict.UNSUPPORTED, f"{_mib(need)} free", f"{_mib(now)} free", way_out)
    if need * HEADROOM > now:
        way_out = "it fits without reserve: expect it to be refused when something else grows"
        return Reason("memory", Verdict.SUBOPTIMAL, f"{_mib(int(need * HEADROOM))} free", f"{_mib(now)} free", way_out)
    return None


def roomy_bytes(device: str, fingerprint: Fingerprint) -> float:
    """Largest `min_memory_bytes` for which `memory_fits` has nothing to say on that device."""
    ever, now = memory_of(device, fingerprint)
    return min(ever, now / HEADROOM) if ever > 0 else float("inf")


def memory_of(device: str, fingerprint: Fingerprint) -> tuple[int, int]:
    """Memory for a device in bytes: what there may ever be (0: unknown) and what is free now."""
    index, accelerator = _accelerator(device, fingerprint)
    if accelerator is None or accelerator.unified_memory:
        ever = fingerprint.facts.memory_bytes
        free = fingerprint.instance.memory_available_bytes
    else:
        ever = accelerator.memory_bytes
        frees = fingerprint.instance.device_memory_free_bytes
        free = frees[index] if index < len(frees) else 0
    return (ever or free), (min(free, ever or free) if free > 0 else ever)


def _accelerator(device: str, fingerprint: Fingerprint) -> tuple[int, Accelerator | None]:
    """The accelerator behind a device word with the most memory; None for the CPU."""
    kind = ACCELERATOR_OF_DEVICE.get(device)
    found = [(i, item) for i, item in enumerate(fingerprint.facts.accelerators) if item.kind == kind]
    return max(found, key=lambda pair: pair[1].memory_bytes) if found else (0, None)


def _mib(size_bytes: int) -> str:
    mib = size_bytes / (1 << 20)
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB" if mib >= 10 else f"{mib:.1f} MiB"
