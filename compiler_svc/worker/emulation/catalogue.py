# SPDX-License-Identifier: Apache-2.0
"""Which CPUs can be emulated, and by what. What they can do is not written here: the emulated CPU is asked.

**QEMU's user mode** runs the unmodified Python and inference library of this worker (x86-64), or those of an ARM64 root
directory, on another CPU. Its arithmetic is that of the instruction set, bit by bit; only time is lost. TCG has no
AVX-512 and no VNNI, so x86 ends at x86-64-v3.

**exact-int8** is for x86 CPUs with VNNI, which QEMU cannot emulate. What is the same and what is not:

* The same: every int8 product is accumulated exactly in int32. VNNI's VPDPBUSD adds four u8 x s8 products to an int32
  without intermediate rounding; without VNNI, ONNX Runtime with `session.x64quantprecision=1` turns s8 weights into u8
  and uses VPMADDWD on 16-bit values, whose sums are exact, too. (The default path, VPMADDUBSW, saturates pairs of
  products at 16 bits: that is the error VNNI does not make.) On a worker that has VNNI itself, its own VNNI is used.
* Not the same: the kernels, hence the order of float additions in what stays float, and the float scaling at the end of
  each int8 operator, which may round differently in the last bit. bf16 and AMX arithmetic of float operators is not
  reproduced at all. So it speaks for int8 artifacts of ONNX Runtime and for nothing else.

Source: QEMU documentation, "QEMU User space emulator" and "TCG CPU models"; Intel SDM vol. 2, VPDPBUSD, VPMADDUBSW,
VPMADDWD; ONNX Runtime 1.31, onnxruntime_session_options_config_keys.h, session.x64quantprecision.
"""

from __future__ import annotations

from dataclasses import dataclass

EXACT_INT8 = "exact-int8:"
"""Front of the names of emulations that need no emulator; the instruction set class follows."""

EXACT_INT8_CLASSES = (
    "x86-64-v3+vnni",  # Intel Alder Lake and later client CPUs
    "x86-64-v4+vnni",  # Cascade Lake, Ice Lake
    "x86-64-v4+vnni+bf16",  # AMD Zen 4 and 5
    "x86-64-v4+vnni+bf16+amx",  # Sapphire Rapids and later; AMX's TDPBUSD accumulates exactly in int32, too
)


@dataclass(frozen=True, slots=True)
class EmulatorCpu:
    """A CPU that QEMU's user mode knows.

    Attributes:
        name: What it is called in a job: "qemu:<model>".
        arch: Its architecture.
        program: Emulator, looked for on PATH.
        cpu: Argument of -cpu. Features that TCG lacks and warns of are switched off by name.
        implementer: ARM only: CPU implementer, as /proc/cpuinfo shows it.
        part: ARM only: CPU part.
    """

    name: str
    arch: str
    program: str
    cpu: str
    implementer: str = ""
    part: str = ""


_X86 = "qemu-x86_64-static"
_ARM = "qemu-aarch64-static"

CPUS = (
    EmulatorCpu("qemu:Nehalem", "x86_64", _X86, "Nehalem"),  # x86-64-v2: no AVX
    EmulatorCpu(  # x86-64-v3: AVX2 without VNNI
        "qemu:Haswell", "x86_64", _X86,
        "Haswell,pcid=off,x2apic=off,tsc-deadline=off,hle=off,rtm=off,invpcid=off",
    ),
    EmulatorCpu("qemu:cortex-a72", "aarch64", _ARM, "cortex-a72", "0x41", "0xd08"),  # Raspberry Pi 4: armv8.0
    EmulatorCpu("qemu:cortex-a76", "aarch64", _ARM, "cortex-a76", "0x41", "0xd0b"),  # Raspberry Pi 5: dot product
    # Everything that QEMU has, without and with scalable vectors: about a Neoverse V1 and a Neoverse V2.
    EmulatorCpu("qemu:max-without-sve", "aarch64", _ARM, "max,sve=off,sme=off", "0x41", "0xd40"),
    EmulatorCpu("qemu:max", "aarch64", _ARM, "max,sme=off", "0x41", "0xd4f"),
)  # fmt: skip


def emulator_cpu(name: str) -> EmulatorCpu | None:
    """The CPU of that name, or None."""
    return next((cpu for cpu in CPUS if cpu.name == name), None)
