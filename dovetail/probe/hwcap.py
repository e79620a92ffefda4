# SPDX-License-Identifier: Apache-2.0
"""CPU features of ARM machines from the auxiliary vector, in the kernel's spelling.

`getauxval(AT_HWCAP)` is what the kernel promises to this process: features that every core has, right also under
emulation and in containers that show another machine's /proc/cpuinfo. Kept apart from `cpu` because the tables are
the kernel's ABI and nothing else.

Source: Linux 6.14 uapi `arch/arm64/include/uapi/asm/hwcap.h`, `arch/arm/include/uapi/asm/hwcap.h`,
`include/uapi/linux/auxvec.h`; names as in `arch/arm64/kernel/cpuinfo.c` and `arch/arm/kernel/setup.c`.
"""

from __future__ import annotations

import ctypes

_AT_HWCAP = 16
_AT_HWCAP2 = 26

# One name for each bit, from bit 0 on.
_ARM64 = """
    fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc
    dcpop sha3 sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg
    gcs cmpbr fprcvt f8mm8 f8mm4 svef16mm sveeltperm sveaes2 svebfscale sve2p2 sme2p2 smesbitperm smeaes smesfexpa
    smestmop smesmop4
"""
_ARM64_2 = """
    dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm svebf16 i8mm bf16 dgh
    rng bti mte ecv afp rpres mte3 sme smei16i64 smef64f64 smei8i32 smef16f32 smeb16f32 smef32f32 smefa64 wfxt
    ebf16 sveebf16 cssc rprfm sve2p1 sme2 sme2p1 smei16i32 smebi32i32 smeb16b16 smef16f16 mops hbc sveb16b16 lrcpc3
    lse128 fpmr lut faminmax f8cvt f8fma f8dp4 f8dp2 f8e4m3 f8e5m2 smelutv2 smef8f16 smef8f32 smesf8fma smesf8dp4
    smesf8dp2 poe
"""
_ARM32 = """
    swp half thumb 26bit fastmult fpa vfp edsp java iwmmxt crunch thumbee neon vfpv3 vfpv3d16 tls vfpv4 idiva idivt
    vfpd32 lpae evtstrm fphp asimdhp asimddp asimdfhm asimdbf16 i8mm
"""
_ARM32_2 = "aes pmull sha1 sha2 crc32 sb ssbs"

_TABLES = {"aarch64": (_ARM64, _ARM64_2), "armv7l": (_ARM32, _ARM32_2), "armv6l": (_ARM32, _ARM32_2)}


def read_hwcaps() -> tuple[int, int] | None:
    """AT_HWCAP and AT_HWCAP2 of this process, or None where the C library has no getauxval (macOS)."""
    try:
        getauxval = ctypes.CDLL(None).getauxval
    except (OSError, AttributeError):
        return None
    getauxval.restype = ctypes.c_ulong
    getauxval.argtypes = (ctypes.c_ulong,)
    return int(getauxval(_AT_HWCAP)), int(getauxval(_AT_HWCAP2))


def hwcap_features(arch: str, hwcaps: tuple[int, int]) -> frozenset[str]:
    """Names of the set bits; empty for architectures whose bits mean something else (x86: CPUID)."""
    found: set[str] = set()
    for names, bits in zip(_TABLES.get(arch, ()), hwcaps, strict=False):
        found.update(name for position, name in enumerate(names.split()) if bits >> position & 1)
    return frozenset(found)
