# SPDX-License-Identifier: Apache-2.0
"""Which instructions every usable core has, and what kind of cores they are.

x86 features come from /proc/cpuinfo, confirmed by CPUID; ARM features come from the auxiliary vector, because the
kernel documents that as the interface. Both are intersected over the usable cores (big.LITTLE, hybrid parts), and a
feature counts only if nobody denies it: a missing feature costs speed, a wrong one costs SIGILL.

Source: Linux Documentation/arch/arm64/elf_hwcaps.rst and cpu-feature-registers.rst.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dovetail.probe.cpuid import KNOWN_FEATURES, CpuId
from dovetail.probe.hwcap import hwcap_features
from dovetail.probe.sysroot import Notes, Sysroot

CPUINFO = "/proc/cpuinfo"
_X86 = ("x86_64", "i686")
_ARM = ("aarch64", "armv7l", "armv6l")

# Names for people only. Source: Linux arch/arm64/include/asm/cputype.h; util-linux lscpu-arm.c.
_ARM_NAMES = {
    "0x41/0xd03": "Cortex-A53", "0x41/0xd04": "Cortex-A35", "0x41/0xd05": "Cortex-A55", "0x41/0xd07": "Cortex-A57",
    "0x41/0xd08": "Cortex-A72", "0x41/0xd09": "Cortex-A73", "0x41/0xd0a": "Cortex-A75", "0x41/0xd0b": "Cortex-A76",
    "0x41/0xd0c": "Neoverse-N1", "0x41/0xd0d": "Cortex-A77", "0x41/0xd40": "Neoverse-V1", "0x41/0xd41": "Cortex-A78",
    "0x41/0xd42": "Cortex-A78AE", "0x41/0xd44": "Cortex-X1", "0x41/0xd46": "Cortex-A510", "0x41/0xd47": "Cortex-A710",
    "0x41/0xd48": "Cortex-X2", "0x41/0xd49": "Neoverse-N2", "0x41/0xd4d": "Cortex-A715", "0x41/0xd4e": "Cortex-X3",
    "0x41/0xd4f": "Neoverse-V2", "0x41/0xd80": "Cortex-A520", "0x41/0xd81": "Cortex-A720", "0x41/0xd82": "Cortex-X4",
    "0x41/0xd83": "Neoverse-V3AE", "0x41/0xd84": "Neoverse-V3", "0x41/0xd85": "Cortex-X925",
    "0x41/0xd87": "Cortex-A725", "0x4e/0x004": "Carmel",
    "0x61/0x022": "Apple M1 Icestorm", "0x61/0x023": "Apple M1 Firestorm",
    "0x61/0x032": "Apple M2 Blizzard", "0x61/0x033": "Apple M2 Avalanche",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class CpuFacts:
    """CPU part of the class facts, and the CPU's name; see `dovetail.fingerprint.ClassFacts`."""

    features: frozenset[str] = frozenset()
    vendor: str = ""
    parts: tuple[str, ...] = ()
    name: str = ""


def parse_cpuinfo(text: str) -> Mapping[int, Mapping[str, str]]:
    """Fields of each processor in /proc/cpuinfo, by its number.

    A block without a processor number (old 32-bit ARM kernels print the features once, at the end) counts for all.
    """
    processors: dict[int, dict[str, str]] = {}
    shared: dict[str, str] = {}
    for block in text.split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines() if ":" in line)
        values = {key.strip(): value.strip() for key, _, value in pairs}
        number = values.get("processor", "")
        if number.isdecimal():
            processors[int(number)] = values
        else:
            shared.update(values)
    if not processors and shared:
        return {0: shared}
    return {number: {**shared, **values} for number, values in processors.items()}


def read_cpu(
    tree: Sysroot,
    notes: Notes,
    *,
    arch: str,
    cpus: frozenset[int],
    hwcaps: tuple[int, int] | None,
    cpuid: CpuId | None,
) -> CpuFacts:
    """CPU facts of the usable cores.

    Args:
        tree: Where /proc is.
        notes: Filled with sources and doubts.
        arch: Architecture of this process.
        cpus: Numbers of the usable cores.
        hwcaps: AT_HWCAP and AT_HWCAP2, or None if they cannot be had.
        cpuid: What CPUID said, or None.
    """
    listed = parse_cpuinfo(tree.read(CPUINFO) or "")
    usable = [values for number, values in sorted(listed.items()) if number in cpus] or list(listed.values())
    if arch in _X86:
        return _read_x86(usable, cpuid, notes)
    if arch in _ARM:
        return _read_arm(tree, usable, notes, arch=arch, cpus=cpus, hwcaps=hwcaps)
    notes.missing("cpu_features", f"features of {arch} are not known to this version")
    return CpuFacts(name=_first(usable, "model name", "cpu", "uarch"))


def _read_x86(processors: Sequence[Mapping[str, str]], cpuid: CpuId | None, notes: Notes) -> CpuFacts:
    flags = _intersection(processors, "flags")
    vendor = _first(processors, "vendor_id")
    fields = ("cpu family", "model", "stepping")
    parts = tuple(
        sorted({"/".join(values[name] for name in fields) for values in processors if {*fields} <= values.keys()})
    )
    if cpuid is None:
        notes.found("cpu_features", CPUINFO if flags else "nothing")
    else:
        flags = _confirm(flags, cpuid, notes)
        if vendor != cpuid.vendor or cpuid.part not in parts:
            if parts:
                notes.missing(
                    "cpuinfo", f"{CPUINFO} shows {vendor} {' '.join(parts)}, CPUID says {cpuid.vendor} {cpuid.part}"
                )
            vendor, parts = cpuid.vendor, (cpuid.part,)
    return CpuFacts(features=flags, vendor=vendor, parts=parts, name=_first(processors, "model name"))


def _confirm(flags: frozenset[str], cpuid: CpuId, notes: Notes) -> frozenset[str]:
    if not flags:
        notes.found("cpu_features", f"CPUID ({CPUINFO} has no flags)")
        return cpuid.features
    notes.found("cpu_features", f"{CPUINFO} flags, confirmed by CPUID")
    denied = (flags & KNOWN_FEATURES) - cpuid.features
    if denied:
        notes.missing("cpuid", f"{CPUINFO} lists {' '.join(sorted(denied))}, which CPUID denies: left out")
    return flags - denied


def _read_arm(
    tree: Sysroot,
    processors: Sequence[Mapping[str, str]],
    notes: Notes,
    *,
    arch: str,
    cpus: frozenset[int],
    hwcaps: tuple[int, int] | None,
) -> CpuFacts:
    if hwcaps is not None and any(hwcaps):
        features = hwcap_features(arch, hwcaps)
        notes.found("cpu_features", "getauxval(AT_HWCAP, AT_HWCAP2)")
    else:
        features = _intersection(processors, "Features")
        notes.found("cpu_features", f"{CPUINFO} Features")
    parts = {
        f"{values['CPU implementer']}/{values['CPU part']}".lower()
        for values in processors
        if {"CPU implementer", "CPU part"} <= values.keys()
    }
    source = CPUINFO
    if not parts:
        parts = {part for cpu in cpus if (part := _midr_part(tree, cpu))}
        source = "/sys/devices/system/cpu/cpu*/regs/identification/midr_el1"
    if parts:
        notes.found("cpu_parts", source)
    else:
        notes.missing("cpu_parts", f"{CPUINFO} has no CPU implementer and part for {arch}")
    ordered = tuple(sorted(parts))
    name = " + ".join(_ARM_NAMES.get(part, part) for part in ordered)
    return CpuFacts(features=features, vendor=ordered[0].split("/")[0] if ordered else "", parts=ordered, name=name)


def _midr_part(tree: Sysroot, cpu: int) -> str:
    """Implementer and part from MIDR_EL1. Source: Arm ARM, MIDR_EL1: implementer [31:24], part number [15:4]."""
    midr = tree.read_int(f"/sys/devices/system/cpu/cpu{cpu}/regs/identification/midr_el1")
    return f"0x{midr >> 24 & 0xFF:02x}/0x{midr >> 4 & 0xFFF:03x}" if midr else ""


def _intersection(processors: Sequence[Mapping[str, str]], key: str) -> frozenset[str]:
    lists = [frozenset(values[key].split()) for values in processors if key in values]
    return frozenset.intersection(*lists) if lists else frozenset()


def _first(processors: Sequence[Mapping[str, str]], *keys: str) -> str:
    return next((values[key] for key in keys for values in processors if values.get(key)), "")
