# SPDX-License-Identifier: Apache-2.0
"""Child script: executes CPUID and XGETBV and prints the registers. x86-64 Linux only; imports nothing of ours.

Python has no such instruction, so 22 bytes of machine code are mapped: written first, then made executable (never both
at once). A system that forbids that (SELinux execmem) makes mprotect fail, which is reported; a crash ends only this
process.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import platform
import sys

# System V AMD64 calling convention: edi = leaf, esi = subleaf, rdx = four uint32 to fill.
#   push rbx; mov r8,rdx; mov eax,edi; mov ecx,esi; cpuid
#   mov [r8],eax; mov [r8+4],ebx; mov [r8+8],ecx; mov [r8+12],edx; pop rbx; ret
_CPUID = bytes.fromhex("53 4989d0 89f8 89f1 0fa2 418900 41895804 41894808 4189500c 5b c3")
# xor ecx,ecx; xgetbv; shl rdx,32; or rax,rdx; ret
_XGETBV = bytes.fromhex("31c9 0f01d0 48c1e220 4809d0 c3")
_XGETBV_OFFSET = 64
_OSXSAVE = 1 << 27
_HYPERVISOR = 1 << 31


def _map_code() -> tuple[mmap.mmap, int]:
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    page[: len(_CPUID)] = _CPUID
    page[_XGETBV_OFFSET : _XGETBV_OFFSET + len(_XGETBV)] = _XGETBV
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if libc.mprotect(address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC):
        raise OSError(ctypes.get_errno(), f"mprotect refused executable memory: {os.strerror(ctypes.get_errno())}")
    return page, address


def read_leaves() -> dict[str, object]:
    """The registers of all leaves that `dovetail.probe.cpuid` reads. Raises OSError where code cannot be mapped."""
    _page, address = _map_code()
    call = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(address)
    xgetbv = ctypes.CFUNCTYPE(ctypes.c_uint64)(address + _XGETBV_OFFSET)

    def cpuid(leaf: int, subleaf: int = 0) -> list[int]:
        registers = (ctypes.c_uint32 * 4)()
        call(leaf, subleaf, registers)
        return list(registers)

    leaves = {"0.0": cpuid(0), "1.0": cpuid(1)}
    if leaves["0.0"][0] >= 7:
        leaves["7.0"] = cpuid(7)
        if leaves["7.0"][0] >= 1:  # eax of 7.0 is the highest subleaf
            leaves["7.1"] = cpuid(7, 1)
    if cpuid(0x80000000)[0] >= 0x80000001:
        leaves["80000001.0"] = cpuid(0x80000001)
    if leaves["1.0"][2] & _HYPERVISOR:
        leaves["40000000.0"] = cpuid(0x40000000)
    return {"leaves": leaves, "xcr0": xgetbv() if leaves["1.0"][2] & _OSXSAVE else 0}


def _answer() -> dict[str, object]:
    if platform.machine() not in ("x86_64", "AMD64") or sys.maxsize < 2**32:
        return {"error": f"CPUID is for x86-64 processes, this one runs on {platform.machine()}"}
    try:
        return read_leaves()
    except (OSError, ValueError) as exc:
        return {"error": str(exc)}


if __name__ == "__main__":
    print("dovetail-probe-answer " + json.dumps(_answer()), flush=True)
    os._exit(0)
