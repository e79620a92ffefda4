# SPDX-License-Identifier: Apache-2.0
"""Which machines may share artifacts and benchmark results.

The class key is derived from class facts only, never from a marketing name (hypervisors report
"AMD EPYC" for many different CPUs). The readable front of the key is for people; the hash behind it decides.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from dovetail.digest import digest_of
from dovetail.fingerprint import ClassFacts, Fingerprint

# x86-64 psABI micro-architecture levels, in the kernel's spelling of /proc/cpuinfo flags.
# Source: x86-64 psABI supplement, "Micro-Architecture Levels" ("abm" is the kernel's name for LZCNT, "pni" for SSE3).
_X86_V2 = {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"}
_X86_V3 = _X86_V2 | {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}
_X86_V4 = _X86_V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
VNNI_FEATURES = frozenset({"avx512_vnni", "avx_vnni"})


@dataclass(frozen=True, slots=True)
class HardwareClass:
    """An equivalence class of machines.

    Attributes:
        key: Lookup key, allowed by `dovetail.digest.NAME_PATTERN`.
        isa_class: Canonical instruction set class such as "x86-64-v3+vnni" or "armv8.2+dotprod".
        label: One line for people.
    """

    key: str
    isa_class: str
    label: str


def has_vnni(features: frozenset[str]) -> bool:
    """True if int8 dot products do not saturate on this x86 CPU.

    Source: ONNX Runtime issue 5849: decide by CPU flag, never by family.
    """
    return bool(features & VNNI_FEATURES)


def isa_class(arch: str, features: frozenset[str]) -> str:
    """Canonical instruction set class; a dozen values in practice.

    x86: psABI level, then "+vnni", "+bf16", "+amx". ARM: "armv8.0" or "armv8.2" (has fp16 arithmetic), then
    "+dotprod", "+i8mm", "+bf16", "+sve2", "+sme2". Other architectures: their own name.
    """
    if arch in ("x86_64", "amd64"):
        return _x86_class(features)
    if arch in ("aarch64", "arm64"):
        return _arm_class(features)
    return arch


def features_of_isa(name: str) -> frozenset[str]:
    """The features that an x86 CPU of that class has at least.

    `isa_class("x86_64", features_of_isa(name)) == name`.

    Raises:
        KeyError: Not a class of x86.
    """
    level, *extras = name.split("+")
    features = {"x86-64-v1": set[str](), "x86-64-v2": _X86_V2, "x86-64-v3": _X86_V3, "x86-64-v4": _X86_V4}[level]
    vnni = {"avx512_vnni" if level == "x86-64-v4" else "avx_vnni"}
    more = {"vnni": vnni, "bf16": {"avx512_bf16"}, "amx": {"amx_tile", "amx_int8"}}
    return frozenset(features.union(*(more[extra] for extra in extras)))


def _x86_class(features: frozenset[str]) -> str:
    levels = (("x86-64-v4", _X86_V4), ("x86-64-v3", _X86_V3), ("x86-64-v2", _X86_V2))
    name = next((level for level, needs in levels if needs <= features), "x86-64-v1")
    if has_vnni(features):
        name += "+vnni"
    if "avx512_bf16" in features:
        name += "+bf16"
    if {"amx_tile", "amx_int8"} <= features:
        name += "+amx"
    return name


def _arm_class(features: frozenset[str]) -> str:
    name = "armv8.2" if "asimdhp" in features else "armv8.0"
    for needed, suffix in (
        ({"asimddp"}, "+dotprod"), ({"i8mm"}, "+i8mm"), ({"bf16"}, "+bf16"),
        ({"sve", "sve2"}, "+sve2"),  # virtual machines on Apple's M4 show sve2 alone: it works in streaming mode only
        ({"sme2"}, "+sme2"),
    ):  # fmt: skip
        if needed <= features:
            name += suffix
    return name


def hardware_class(fingerprint: Fingerprint) -> HardwareClass:
    """The class of a machine."""
    facts = fingerprint.facts
    isa = isa_class(facts.arch, facts.cpu_features)
    parts = [isa, f"{facts.usable_cores}c", *(_device_word(facts, index) for index in range(len(facts.accelerators)))]
    front = re.sub(r"[^a-z0-9.]+", "-", "-".join(parts).lower()).strip("-.")[:100] or "machine"
    return HardwareClass(
        key=f"{front}-{digest_of(_key_facts(facts, isa))[:12]}",
        isa_class=isa,
        label=_label(facts, isa),
    )


def _device_word(facts: ClassFacts, index: int) -> str:
    device = facts.accelerators[index]
    if device.compute_capability:
        return (
            "sm" + device.compute_capability.replace(".", "") + (f"-{device.mig_profile}" if device.mig_profile else "")
        )
    return device.arch or device.kind


def _key_facts(facts: ClassFacts, isa: str) -> dict[str, object]:
    """What separates one class from another. CPU vendor and parts are in: equal flags do not mean equal speed."""
    accelerators = []
    for device in facts.accelerators:
        document = asdict(device)
        document.pop("product")
        document["memory_gib"] = document.pop("memory_bytes") >> 30
        accelerators.append(document)
    return {
        "arch": facts.arch,
        "os": facts.os,
        "isa": isa,
        "cpu": [facts.cpu_vendor, *facts.cpu_parts],
        "cores": [facts.usable_cores, facts.efficiency_cores, facts.numa_nodes],
        "memory_log2_gib": max(facts.memory_bytes >> 30, 0).bit_length(),
        "l4t": facts.l4t,
        "accelerators": accelerators,
        "runtimes": {
            name: [library.version, *sorted(library.devices)] for name, library in sorted(facts.runtimes.items())
        },
    }


def _label(facts: ClassFacts, isa: str) -> str:
    cores = "1 core" if facts.usable_cores == 1 else f"{facts.usable_cores} cores"
    devices = "".join(f", {device.product or device.kind}" for device in facts.accelerators)
    runtimes = ", ".join(f"{name} {library.version}" for name, library in sorted(facts.runtimes.items()))
    board = f"{facts.board}, " if facts.board else ""
    return f"{board}{isa}, {cores}{devices}; {runtimes or 'no inference library'}"
