# SPDX-License-Identifier: Apache-2.0
"""CPU features: intersected over the usable cores, and never more than the CPU itself confirms."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dovetail.probe.child import ask
from dovetail.probe.cpu import parse_cpuinfo, read_cpu
from dovetail.probe.cpuid import CpuId, parse_leaves
from dovetail.probe.hwcap import hwcap_features, read_hwcaps
from dovetail.probe.interpreter import elf_arch, read_arch, read_libc
from dovetail.probe.sysroot import Notes, Sysroot, parse_cpu_list

X86 = """\
processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 85
model name\t: Intel(R) Xeon(R) Gold 5118 CPU @ 2.30GHz
stepping\t: 4
flags\t\t: fpu sse2 avx avx2 avx512f la57

processor\t: 1
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 85
model name\t: Intel(R) Xeon(R) Gold 5118 CPU @ 2.30GHz
stepping\t: 4
flags\t\t: fpu sse2 avx avx2 la57
"""
ROCK5 = "\n".join(
    f"processor\t: {cpu}\nFeatures\t: fp asimd asimddp{extra}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n"
    for cpu, part, extra in [(0, "0xd05", ""), (1, "0xd05", ""), (2, "0xd0b", " crc32"), (3, "0xd0b", " crc32")]
)
PI4_HWCAP = 0b1000_1000_0111  # fp asimd evtstrm crc32 cpuid


def tree(root: Path, cpuinfo: str) -> Sysroot:
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(cpuinfo)
    return Sysroot(root)


def cpuid(*features: str, vendor: str = "GenuineIntel", part: str = "6/85/4") -> CpuId:
    return CpuId(frozenset(features), vendor, part, "")


def test_features_are_those_that_every_usable_core_has(tmp_path: Path) -> None:
    notes = Notes()

    both = read_cpu(tree(tmp_path, X86), notes, arch="x86_64", cpus=frozenset({0, 1}), hwcaps=None, cpuid=None)
    first = read_cpu(Sysroot(tmp_path), notes, arch="x86_64", cpus=frozenset({0}), hwcaps=None, cpuid=None)

    assert both.features == {"fpu", "sse2", "avx", "avx2", "la57"}
    assert first.features == both.features | {"avx512f"}
    assert both.vendor == "GenuineIntel"
    assert both.parts == ("6/85/4",)
    assert both.name.startswith("Intel(R) Xeon(R) Gold 5118")


def test_a_flag_that_cpuid_denies_is_left_out_and_reported(tmp_path: Path) -> None:
    notes = Notes()

    facts = read_cpu(
        tree(tmp_path, X86), notes, arch="x86_64", cpus=frozenset({0}), hwcaps=None, cpuid=cpuid("sse2", "avx")
    )

    assert facts.features == {"fpu", "sse2", "avx", "la57"}  # fpu and la57 are not asked from CPUID
    assert "avx2 avx512f" in notes.absent["cpuid"]


def test_a_feature_that_only_cpuid_has_is_not_added(tmp_path: Path) -> None:
    told = cpuid("sse2", "avx", "avx2", "avx512_vnni")

    facts = read_cpu(tree(tmp_path, X86), Notes(), arch="x86_64", cpus=frozenset({1}), hwcaps=None, cpuid=told)

    assert "avx512_vnni" not in facts.features


def test_cpuid_names_the_cpu_when_cpuinfo_shows_another_machine(tmp_path: Path) -> None:
    notes = Notes()
    told = cpuid("sse2", vendor="AuthenticAMD", part="25/1/1")

    facts = read_cpu(tree(tmp_path, X86), notes, arch="x86_64", cpus=frozenset({0}), hwcaps=None, cpuid=told)

    assert (facts.vendor, facts.parts) == ("AuthenticAMD", ("25/1/1",))
    assert "6/85/4" in notes.absent["cpuinfo"]


def test_cpuid_stands_in_for_a_cpuinfo_without_flags(tmp_path: Path) -> None:
    notes = Notes()

    facts = read_cpu(
        tree(tmp_path, ROCK5), notes, arch="x86_64", cpus=frozenset({0}), hwcaps=None, cpuid=cpuid("sse2", "avx")
    )

    assert facts.features == {"sse2", "avx"}
    assert facts.parts == ("6/85/4",)
    assert notes.sources["cpu_features"].startswith("CPUID")


def test_arm_features_come_from_the_auxiliary_vector_not_from_cpuinfo(tmp_path: Path) -> None:
    facts = read_cpu(
        tree(tmp_path, ROCK5), Notes(), arch="aarch64", cpus=frozenset({0, 3}), hwcaps=(PI4_HWCAP, 0), cpuid=None
    )

    assert facts.features == {"fp", "asimd", "evtstrm", "crc32", "cpuid"}
    assert facts.vendor == "0x41"
    assert facts.parts == ("0x41/0xd05", "0x41/0xd0b")
    assert facts.name == "Cortex-A55 + Cortex-A76"


def test_arm_falls_back_to_the_common_features_of_cpuinfo(tmp_path: Path) -> None:
    facts = read_cpu(tree(tmp_path, ROCK5), Notes(), arch="aarch64", cpus=frozenset({0, 3}), hwcaps=None, cpuid=None)

    assert facts.features == {"fp", "asimd", "asimddp"}


def test_arm_parts_come_from_midr_when_cpuinfo_is_of_another_machine(tmp_path: Path) -> None:
    root = tree(tmp_path, X86)
    register = tmp_path / "sys/devices/system/cpu/cpu0/regs/identification"
    register.mkdir(parents=True)
    (register / "midr_el1").write_text("0x00000000414fd0b1\n")

    facts = read_cpu(root, Notes(), arch="aarch64", cpus=frozenset({0}), hwcaps=(3, 0), cpuid=None)

    assert facts.parts == ("0x41/0xd0b",)


def test_an_unknown_architecture_has_no_features_and_a_reason(tmp_path: Path) -> None:
    notes = Notes()

    facts = read_cpu(tree(tmp_path, ""), notes, arch="riscv64", cpus=frozenset({0}), hwcaps=(1, 0), cpuid=None)

    assert not facts.features
    assert "riscv64" in notes.absent["cpu_features"]


def test_a_block_without_a_number_counts_for_all_processors() -> None:
    old_arm = "Processor\t: ARMv7\nprocessor\t: 0\n\nprocessor\t: 1\n\nFeatures\t: neon vfpv4\n"

    read = parse_cpuinfo(old_arm)

    assert read[0]["Features"] == read[1]["Features"] == "neon vfpv4"


@pytest.mark.parametrize(
    ("arch", "hwcaps", "expected"),
    [
        ("aarch64", (1 << 20 | 1 << 10, 1 << 13 | 1 << 14), {"asimddp", "asimdhp", "i8mm", "bf16"}),
        ("aarch64", (1 << 22, 1 << 1 | 1 << 23 | 1 << 37), {"sve", "sve2", "sme", "sme2"}),
        ("aarch64", (1 << 31 | 1 << 9, 1 << 63), {"pacg", "fphp", "poe"}),
        ("armv7l", (1 << 12 | 1 << 24, 1 << 4), {"neon", "asimddp", "crc32"}),
        ("x86_64", (0xFFFF, 0xFFFF), set()),
    ],
)
def test_hwcap_bits_have_the_kernels_names(arch: str, hwcaps: tuple[int, int], expected: set[str]) -> None:
    assert hwcap_features(arch, hwcaps) == expected


def leaves(**changes: list[int]) -> dict[str, object]:
    rows = {
        "0.0": [13, 0x68747541, 0x444D4163, 0x69746E65],
        "1.0": [10489617, 16910336, 4294586883, 395049983],
        "7.0": [0, 563873707, 4195972, 16],
        "80000001.0": [10489617, 1073741824, 4195315, 802421759],
        "40000000.0": [1073741825, 1263359563, 1447775574, 77],
    }
    rows.update({name.replace("leaf_", "").replace("_", "."): row for name, row in changes.items()})
    return {"leaves": rows, "xcr0": 7}


def test_recorded_registers_of_an_epyc_milan_guest_are_read() -> None:
    read = parse_leaves(leaves())

    assert read is not None
    assert (read.vendor, read.part, read.hypervisor) == ("AuthenticAMD", "25/1/1", "KVMKVMKVM")
    assert {"avx2", "fma", "sha_ni", "vaes", "abm", "lahf_lm", "sse4a"} <= read.features
    assert not {"avx512f", "avx_vnni", "amx_tile"} & read.features


@pytest.mark.parametrize(
    ("xcr0", "kept", "dropped"),
    [
        (0b10, "sse2", "avx"),
        (0b111, "avx2", "avx512f"),
        (0b1110_0111, "avx512f", "amx_tile"),
        (0b1110_0111 | 3 << 17, "amx_tile", "xop"),
    ],
)
def test_instructions_whose_registers_the_system_does_not_save_are_unusable(xcr0: int, kept: str, dropped: str) -> None:
    row = [0, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF]

    read = parse_leaves({**leaves(leaf_7_0=row), "xcr0": xcr0})

    assert read is not None
    assert kept in read.features
    assert dropped not in read.features


@pytest.mark.parametrize(
    "document", [{}, {"leaves": 3}, {"leaves": {"0.0": [1, 2, 3, 4]}}, {"leaves": {"0.0": [1], "1.0": [1, 2, 3, 4]}}]
)
def test_a_malformed_answer_is_no_answer(document: dict[str, object]) -> None:
    assert parse_leaves(document) is None


@pytest.mark.skipif(read_arch(Notes()) != "x86_64" or sys.platform != "linux", reason="CPUID is an x86-64 instruction")
async def test_the_real_instruction_confirms_this_machines_baseline() -> None:
    answer = await ask("cpuid", isolated=True)

    read = parse_leaves(answer.document)

    assert read is not None, answer.reason
    assert {"sse2", "lm", "cmov"} <= read.features
    assert read.vendor


@pytest.mark.skipif(sys.platform != "linux", reason="the auxiliary vector is Linux's")
def test_the_auxiliary_vector_of_this_process_is_readable() -> None:
    read = read_hwcaps()

    assert read is not None
    assert read[0] > 0


def elf(machine: int, bits: int) -> bytes:
    return b"\x7fELF" + bytes([bits, 1]) + bytes(12) + machine.to_bytes(2, "little")


@pytest.mark.parametrize(
    ("header", "kernel", "expected"),
    [
        (elf(62, 2), "x86_64", "x86_64"),
        (elf(3, 1), "x86_64", "i686"),
        (elf(183, 2), "aarch64", "aarch64"),
        (elf(40, 1), "aarch64", "armv7l"),
        (elf(40, 1), "armv6l", "armv6l"),
        (elf(243, 2), "riscv64", "riscv64"),
        (b"#!/bin/sh", "x86_64", None),
    ],
)
def test_the_architecture_is_the_interpreters_not_the_kernels(header: bytes, kernel: str, expected: str | None) -> None:
    assert elf_arch(header, kernel) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="reads an ELF interpreter and its libc")
def test_libc_and_architecture_of_this_process_are_named(tmp_path: Path) -> None:
    notes = Notes()

    assert read_arch(notes)
    assert notes.sources["arch"] == "ELF header of the interpreter"
    assert read_libc(Sysroot(tmp_path), notes).startswith(("glibc-2.", "musl"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0-3", {0, 1, 2, 3}), ("0,2-3\n", {0, 2, 3}), ("", set()), ("x,1", {1}), ("5-2", set()), ("0-99999999", set())],
)
def test_cpu_lists_are_read_and_nonsense_is_left_out(text: str, expected: set[int]) -> None:
    assert parse_cpu_list(text) == expected
