# SPDX-License-Identifier: Apache-2.0
"""Instruction sets as AOTInductor names them, and which CPU features ordinary compiled code may use. Pure.

Two things are compiled into a package: kernels for one of torch's vector instruction sets, which its metadata names,
and everything else for what the C++ compiler was told by -march, which it does not name. With -march=native the second
may be more than the first: the compiler then uses whatever the builder's CPU has.
"""

from __future__ import annotations

from collections.abc import Mapping

from dovetail.hardware_class import features_of_isa

NEEDS: Mapping[str, frozenset[str]] = {
    "AVX2": frozenset({"avx2", "fma", "f16c"}),
    "AVX512": frozenset({"avx512f", "avx512dq", "avx512vl", "avx512bw", "avx2", "fma"}),
    "AVX512_VNNI": frozenset({"avx512f", "avx512dq", "avx512vl", "avx512bw", "avx512_vnni", "avx2", "fma"}),
    "AMX_TILE": frozenset({"amx_tile", "amx_int8", "amx_bf16"}),
    "ASIMD": frozenset({"asimd"}),
    "SVE": frozenset({"asimd", "sve"}),
    "SVE256": frozenset({"asimd", "sve"}),
    "INVALID_VEC_ISA": frozenset(),
}
"""Word of torch -> features behind it; a name of several words ("AVX512 AVX512_VNNI") needs all of them.

Source: PyTorch 2.13, torch/_inductor/cpu_vec_isa.py.
"""

PORTABLE_X86 = features_of_isa("x86-64-v3")
"""What -march=x86-64-v3 may use."""

# Features that a compiler uses by itself when it is told -march=native; those that are only reached by naming them
# (aes, sha_ni, rdrand …) are left out, because they would tie an artifact to more than it needs.
# Source: GCC 12 manual, "x86 Options" and "AArch64 Options" (what -march=native implies).
# fmt: off
_NATIVE_X86 = frozenset({
    "pni", "ssse3", "sse4_1", "sse4_2", "sse4a", "popcnt", "cx16", "lahf_lm", "movbe", "abm", "bmi1", "bmi2", "tbm",
    "xop", "fma4", "avx", "avx2", "f16c", "fma", "gfni", "xsave", "avx512f", "avx512cd", "avx512bw", "avx512dq",
    "avx512vl", "avx512ifma", "avx512vbmi", "avx512_vbmi2", "avx512_vnni", "avx512_bitalg", "avx512_vpopcntdq",
    "avx512_bf16", "avx512_fp16", "avx_vnni", "avx_vnni_int8", "avx_ifma", "amx_tile", "amx_int8", "amx_bf16",
})
_NATIVE_ARM = frozenset({
    "fp", "asimd", "asimdhp", "fphp", "asimdrdm", "asimddp", "atomics", "crc32", "lrcpc", "ilrcpc", "fcma", "jscvt",
    "i8mm", "bf16", "sve", "sve2", "svei8mm", "svebf16", "sme", "sme2", "flagm", "flagm2", "frint",
})
# fmt: on


def features_behind(isa: str) -> frozenset[str] | None:
    """CPU features that a name of torch's stands for; None if a word of it is not known."""
    words = isa.upper().split()
    if not words or any(word not in NEEDS for word in words):
        return None
    return frozenset[str]().union(*(NEEDS[word] for word in words))


def native_features(arch: str, features: frozenset[str]) -> frozenset[str]:
    """Of a CPU's features those that code compiled with -march=native on it may use."""
    return features & (_NATIVE_X86 if arch in ("x86_64", "amd64") else _NATIVE_ARM)


def torch_isa(arch: str, features: frozenset[str]) -> str:
    """The instruction set that torch takes at most on such a CPU, in its own words.

    At most, because it also tries whether the compiler can; the package's metadata has the last word.

    Source: PyTorch 2.13, torch/_inductor/cpu_vec_isa.py, supported_vec_isa_list and valid_vec_isa_list.
    """
    if arch in ("aarch64", "arm64"):
        return "SVE256" if {"sve", "bf16"} <= features else "ASIMD"
    for name in ("AVX512 AVX512_VNNI AMX_TILE", "AVX512 AVX512_VNNI", "AVX512", "AVX2"):
        if (features_behind(name) or frozenset()) <= features:
            return name
    return "INVALID_VEC_ISA"
