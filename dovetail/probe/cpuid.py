# SPDX-License-Identifier: Apache-2.0
"""CPU features of x86 machines from the CPUID instruction, in the spelling of /proc/cpuinfo.

The instruction says what this process really runs on; /proc/cpuinfo may be another machine's (qemu-user passes the
host's through, sandboxes bind-mount one). Only instruction sets that user code chooses kernels by are named here.
Executing the instruction is done by `cpuid_child.py`; this file reads the registers it returns.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual vol. 2A, CPUID, and vol. 1 §13.3 (XCR0);
AMD64 Architecture Programmer's Manual vol. 3, appendix E; names from Linux `arch/x86/include/asm/cpufeatures.h`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_EAX, _EBX, _ECX, _EDX = range(4)

# (leaf.subleaf, register) -> bit -> name
_BITS: Mapping[tuple[str, int], Mapping[int, str]] = {
    ("1.0", _EDX): {8: "cx8", 15: "cmov", 23: "mmx", 24: "fxsr", 25: "sse", 26: "sse2"},
    ("1.0", _ECX): {
        0: "pni", 1: "pclmulqdq", 9: "ssse3", 12: "fma", 13: "cx16", 19: "sse4_1", 20: "sse4_2", 22: "movbe",
        23: "popcnt", 25: "aes", 26: "xsave", 28: "avx", 29: "f16c", 30: "rdrand",
    },
    ("7.0", _EBX): {
        3: "bmi1", 5: "avx2", 8: "bmi2", 9: "erms", 16: "avx512f", 17: "avx512dq", 18: "rdseed", 19: "adx",
        21: "avx512ifma", 23: "clflushopt", 24: "clwb", 28: "avx512cd", 29: "sha_ni", 30: "avx512bw", 31: "avx512vl",
    },
    ("7.0", _ECX): {
        1: "avx512vbmi", 6: "avx512_vbmi2", 8: "gfni", 9: "vaes", 10: "vpclmulqdq", 11: "avx512_vnni",
        12: "avx512_bitalg", 14: "avx512_vpopcntdq", 27: "movdiri", 28: "movdir64b",
    },
    ("7.0", _EDX): {
        4: "fsrm", 8: "avx512_vp2intersect", 22: "amx_bf16", 23: "avx512_fp16", 24: "amx_tile", 25: "amx_int8",
    },
    ("7.1", _EAX): {4: "avx_vnni", 5: "avx512_bf16"},
    ("80000001.0", _ECX): {
        0: "lahf_lm", 5: "abm", 6: "sse4a", 7: "misalignsse", 8: "3dnowprefetch", 11: "xop", 16: "fma4",
    },
    ("80000001.0", _EDX): {22: "mmxext", 29: "lm"},
}  # fmt: skip

_OSXSAVE = 1 << 27
_HYPERVISOR = 1 << 31
_AVX_STATE = 0b110  # XCR0: SSE and YMM registers are saved by the operating system
_AVX512_STATE = 0b1110_0110  # the same plus opmask and both halves of ZMM
_AMX_STATE = 3 << 17  # TILECFG and TILEDATA
_NEEDS_AVX_STATE = frozenset({"avx", "avx2", "f16c", "fma", "fma4", "xop", "vaes", "vpclmulqdq", "avx_vnni"})

KNOWN_FEATURES = frozenset(name for names in _BITS.values() for name in names.values())
"""Features that CPUID can confirm or deny; names outside are the kernel's own."""


@dataclass(frozen=True, slots=True)
class CpuId:
    """What the instruction said.

    Attributes:
        features: Usable instruction sets, the operating system's register state taken into account.
        vendor: "GenuineIntel", "AuthenticAMD" …
        part: "family/model/stepping" in decimal, as /proc/cpuinfo counts them.
        hypervisor: Signature such as "KVMKVMKVM", or "" on bare metal.
    """

    features: frozenset[str]
    vendor: str
    part: str
    hypervisor: str


def parse_leaves(document: Mapping[str, Any]) -> CpuId | None:
    """Read the child's answer: {"leaves": {"7.0": [eax, ebx, ecx, edx], …}, "xcr0": n}; None if it is malformed."""
    try:
        leaves = {str(name): tuple(int(value) for value in row) for name, row in document["leaves"].items()}
        xcr0 = int(document.get("xcr0", 0))
        if any(len(row) != 4 for row in leaves.values()) or not {"0.0", "1.0"} <= leaves.keys():
            return None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    basic = leaves["1.0"]
    has_hypervisor = bool(basic[_ECX] & _HYPERVISOR)
    return CpuId(
        features=_features(leaves, xcr0 if basic[_ECX] & _OSXSAVE else 0),
        vendor=_text(leaves["0.0"][_EBX], leaves["0.0"][_EDX], leaves["0.0"][_ECX]),
        part=_part(basic[_EAX]),
        hypervisor=_text(*leaves.get("40000000.0", (0, 0, 0, 0))[1:]) if has_hypervisor else "",
    )


def _features(leaves: Mapping[str, tuple[int, ...]], xcr0: int) -> frozenset[str]:
    found = {
        name
        for (leaf, register), names in _BITS.items()
        for bit, name in names.items()
        if leaf in leaves and leaves[leaf][register] >> bit & 1
    }
    if xcr0 & _AVX_STATE != _AVX_STATE:
        found -= _NEEDS_AVX_STATE
    if xcr0 & _AVX512_STATE != _AVX512_STATE:
        found = {name for name in found if not name.startswith("avx512")}
    if xcr0 & _AMX_STATE != _AMX_STATE:
        found = {name for name in found if not name.startswith("amx_")}
    return frozenset(found)


def _part(signature: int) -> str:
    family, model = signature >> 8 & 15, signature >> 4 & 15
    if family in (6, 15):
        model |= (signature >> 16 & 15) << 4
    if family == 15:
        family += signature >> 20 & 255
    return f"{family}/{model}/{signature & 15}"


def _text(*registers: int) -> str:
    data = b"".join((value & 0xFFFFFFFF).to_bytes(4, "little") for value in registers)
    return data.decode("ascii", errors="replace").strip("\0 ")
