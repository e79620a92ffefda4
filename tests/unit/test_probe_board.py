# SPDX-License-Identifier: Apache-2.0
"""Boards, Jetson releases, power modes, and what kind of machine is around the process."""

from __future__ import annotations

from pathlib import Path

import pytest

from dovetail.probe.board import nvpmodel_name, parse_l4t, read_board, read_power_mode
from dovetail.probe.cpuid import CpuId
from dovetail.probe.sysroot import Notes, Sysroot
from dovetail.probe.virtualisation import read_container, read_emulator, read_hypervisor
from tests.fakes.sysroots import sysroot_of

NVPMODEL = """\
# comment
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< PM_CONFIG DEFAULT=1 >
"""
DPKG = """\
Package: bash
Status: install ok installed
Version: 5.1

Package: nvidia-l4t-core
Status: install ok installed
Priority: standard
Version: 36.4.3-20250107174145

Package: zlib1g
Version: 1.2
"""


def test_a_raspberry_pi_is_named_by_its_device_tree_without_nul_bytes(tmp_path: Path) -> None:
    tree = sysroot_of(
        tmp_path,
        {
            "/proc/device-tree/compatible": "raspberrypi,4-model-b\0brcm,bcm2711\0",
            "/proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.5\0",
        },
    )

    board = read_board(tree, Notes())

    assert board.name == "raspberrypi,4-model-b"
    assert board.compatible == ("raspberrypi,4-model-b", "brcm,bcm2711")
    assert board.product == "Raspberry Pi 4 Model B Rev 1.5"
    assert board.l4t == ""


def test_a_container_that_only_has_sys_still_finds_the_device_tree(tmp_path: Path) -> None:
    tree = sysroot_of(tmp_path, {"/sys/firmware/devicetree/base/compatible": "apple,j274\0apple,t8103\0"})

    assert read_board(tree, Notes()).name == "apple,j274"


def test_a_pc_has_a_product_but_no_board(tmp_path: Path) -> None:
    tree = sysroot_of(
        tmp_path, {"/sys/class/dmi/id/sys_vendor": "Dell Inc.\n", "/sys/class/dmi/id/product_name": "PowerEdge R640\n"}
    )

    board = read_board(tree, Notes())

    assert (board.name, board.product) == ("", "Dell Inc. PowerEdge R640")


def test_a_machine_without_firmware_files_gives_a_reason(tmp_path: Path) -> None:
    notes = Notes()

    read_board(Sysroot(tmp_path), notes)

    assert "device tree" in notes.absent["board"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64", "36.4.3"),
        ("# R32 (release), REVISION: 5.1, GCID: 26202423, BOARD: t186ref", "32.5.1"),
        ("# R35 (release), REVISION: 4.1", "35.4.1"),
        ("something else", ""),
    ],
)
def test_the_l4t_release_is_read_from_its_file(text: str, expected: str) -> None:
    assert parse_l4t(text) == expected


def test_the_l4t_release_is_read_from_the_package_when_the_file_is_missing(tmp_path: Path) -> None:
    tree = sysroot_of(tmp_path, {"/var/lib/dpkg/status": DPKG})

    assert read_board(tree, Notes()).l4t == "36.4.3"


def test_a_jetsons_power_mode_has_its_name(tmp_path: Path) -> None:
    tree = sysroot_of(tmp_path, {"/var/lib/nvpmodel/status": "pmode:0002\n", "/etc/nvpmodel.conf": NVPMODEL})

    assert read_power_mode(tree, Notes(), cpus=frozenset({0})) == "MAXN_SUPER"
    assert nvpmodel_name(NVPMODEL, 7) == "mode 7"


def test_elsewhere_the_power_mode_is_the_governors(tmp_path: Path) -> None:
    governor = "/sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor"
    tree = sysroot_of(tmp_path, {governor.format(0): "ondemand\n", governor.format(1): "performance\n"})

    assert read_power_mode(tree, Notes(), cpus=frozenset({0, 1})) == "ondemand+performance"
    assert read_power_mode(tree, Notes(), cpus=frozenset({0})) == "ondemand"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"/.dockerenv": ""}, "docker"),
        ({"/run/.containerenv": ""}, "podman"),
        ({"/.dockerenv": "", "/var/run/secrets/kubernetes.io/token": ""}, "kubernetes"),
        ({"/run/systemd/container": "systemd-nspawn\n"}, "systemd-nspawn"),
        ({"/proc/self/cgroup": "0::/kubepods.slice/x\n"}, "kubernetes"),
        ({"/proc/self/cgroup": "4:memory:/docker/abc\n"}, "docker"),
        ({"/proc/self/cgroup": "0::/user.slice\n"}, ""),
    ],
)
def test_containers_are_told_by_their_marks(tmp_path: Path, files: dict[str, str], expected: str) -> None:
    assert read_container(sysroot_of(tmp_path, files), Notes()) == expected


@pytest.mark.parametrize(
    ("signature", "product", "files", "expected"),
    [
        ("KVMKVMKVM", "", {}, "kvm"),
        ("Microsoft Hv", "", {}, "hyper-v"),
        ("SomethingNew", "", {}, "SomethingNew"),
        (None, "Amazon EC2 g6.xlarge", {}, "kvm"),
        (None, "Amazon EC2 m7i.metal-24xl", {}, ""),
        (None, "QEMU KVM Virtual Machine", {}, "qemu"),
        (None, "Dell Inc. PowerEdge R640", {}, ""),
        (None, "", {"/sys/hypervisor/type": "xen\n"}, "xen"),
        (None, "", {"/proc/device-tree/hypervisor/compatible": "xen,xen-4.17\0xen,xen\0"}, "xen,xen-4.17"),
        (None, "", {"/proc/cpuinfo": "flags\t: fpu hypervisor lahf_lm\n"}, "unknown"),
        (None, "", {"/proc/cpuinfo": "flags\t: fpu lahf_lm\n"}, ""),
    ],
)
def test_hypervisors_are_told_by_signature_then_by_files(
    tmp_path: Path, signature: str | None, product: str, files: dict[str, str], expected: str
) -> None:
    cpuid = None if signature is None else CpuId(frozenset(), "", "", signature)

    told = read_hypervisor(sysroot_of(tmp_path, files), Notes(), arch="x86_64", cpuid=cpuid, product=product)

    assert told == expected


def test_another_architectures_cpuinfo_says_nothing_about_the_hypervisor(tmp_path: Path) -> None:
    tree = sysroot_of(tmp_path, {"/proc/cpuinfo": "flags\t: fpu hypervisor lahf_lm\n"})

    assert read_hypervisor(tree, Notes(), arch="aarch64", cpuid=None, product="") == ""


@pytest.mark.parametrize(
    ("arch", "hypervisor", "cpuinfo", "expected"),
    [
        ("x86_64", "qemu", "", "qemu"),
        ("aarch64", "", "processor\t: 0\nflags\t\t: fpu sse2\n", "qemu"),
        ("x86_64", "", "processor\t: 0\nCPU implementer\t: 0x41\n", "qemu"),
        ("x86_64", "kvm", "processor\t: 0\nflags\t\t: fpu sse2\n", ""),
        ("armv7l", "", "processor\t: 0\nCPU implementer\t: 0x41\n", ""),
        ("riscv64", "", "processor\t: 0\nflags\t\t: fpu\n", ""),
    ],
)
def test_emulation_shows_in_the_cpus_signature_or_in_a_foreign_cpuinfo(
    tmp_path: Path, arch: str, hypervisor: str, cpuinfo: str, expected: str
) -> None:
    tree = sysroot_of(tmp_path, {"/proc/cpuinfo": cpuinfo})

    assert read_emulator(tree, Notes(), arch=arch, hypervisor=hypervisor) == expected


def test_emulation_shows_in_the_threads_real_executable(tmp_path: Path) -> None:
    thread = tmp_path / "proc/thread-self"
    thread.mkdir(parents=True)
    (thread / "exe").symlink_to("/usr/bin/qemu-aarch64-static")

    assert read_emulator(Sysroot(tmp_path), Notes(), arch="aarch64", hypervisor="") == "qemu"
