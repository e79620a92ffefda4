# SPDX-License-Identifier: Apache-2.0
"""Accelerators: NVIDIA from a child's answer, Intel and AMD from sysfs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dovetail.fingerprint import Accelerator, RuntimeLibrary
from dovetail.probe.amd import full_names, gfx_name, read_amd
from dovetail.probe.child import Answer
from dovetail.probe.intel import read_intel
from dovetail.probe.machine import refine_intel
from dovetail.probe.memory import MemoryFacts
from dovetail.probe.nvidia import architecture, has_driver, multiprocessors, read_nvidia
from dovetail.probe.sysroot import Notes, Sysroot
from tests.fakes.sysroots import sysroot_of

MEMORY = MemoryFacts(total_bytes=128 << 30, available_bytes=100 << 30)
PROC_VERSION = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\nGCC version: 12\n"


def nvml(**changes: Any) -> Answer:
    device = {
        "name": "NVIDIA L4",
        "uuid": "GPU-1",
        "compute_capability": [8, 9],
        "cores": 7424,
        "multiprocessors": None,
        "memory_bytes": 24 << 30,
        "memory_free_bytes": 23 << 30,
        "mig": False,
        **changes,
    }
    return Answer({"source": "NVML", "driver": "580.95.05", "cuda": 13000, "devices": [device]})


def read(tree: Sysroot, answer: Answer, notes: Notes, board: tuple[str, ...] = ()) -> list[Accelerator]:
    return list(read_nvidia(tree, notes, answer, board=board, memory=MEMORY).devices)


def test_a_discrete_gpu_is_described_from_nvml(tmp_path: Path) -> None:
    notes = Notes()

    facts = read_nvidia(Sysroot(tmp_path), notes, nvml(), board=(), memory=MEMORY)

    assert facts.devices == (
        Accelerator(
            kind="nvidia_gpu",
            product="NVIDIA L4",
            compute_capability="8.9",
            multiprocessors=58,
            memory_bytes=24 << 30,
            driver="580.95.05",
            cuda="13.0",
            arch="ada",
        ),
    )
    assert facts.uuids == ("GPU-1",)
    assert facts.free_bytes == (23 << 30,)
    assert notes.sources["nvidia_gpu"] == "NVML"


def test_a_gpu_that_shares_the_cpus_memory_has_the_machines_memory(tmp_path: Path) -> None:
    answer = nvml(name="NVIDIA GB10", compute_capability=[12, 1], cores=6144, memory_bytes=None, memory_free_bytes=None)

    facts = read_nvidia(Sysroot(tmp_path), Notes(), answer, board=(), memory=MEMORY)

    assert facts.devices[0].unified_memory
    assert facts.devices[0].memory_bytes == MEMORY.total_bytes
    assert facts.devices[0].multiprocessors == 48
    assert facts.free_bytes == (MEMORY.available_bytes,)


def test_a_mig_slice_keeps_its_profile_beside_its_parents_capability(tmp_path: Path) -> None:
    answer = nvml(
        name="NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        compute_capability=[8, 0],
        cores=None,
        multiprocessors=14,
        memory_bytes=5 << 30,
        mig=True,
    )

    (device,) = read(Sysroot(tmp_path), answer, Notes())

    assert (device.product, device.mig_profile, device.multiprocessors) == ("NVIDIA A100-SXM4-40GB", "1g.5gb", 14)


def test_the_driver_version_is_read_from_proc_when_the_library_does_not_say(tmp_path: Path) -> None:
    tree = sysroot_of(tmp_path, {"/proc/driver/nvidia/version": PROC_VERSION})
    document = {**nvml().document, "driver": ""}

    (device,) = read(tree, Answer(document), Notes())

    assert device.driver == "580.95.05"


@pytest.mark.parametrize("document", [{"devices": 3}, {"devices": [{}]}, {"devices": []}, {"other": 1}])
def test_an_answer_without_a_readable_device_is_absent_with_a_reason(tmp_path: Path, document: dict[str, Any]) -> None:
    notes = Notes()

    assert read(Sysroot(tmp_path), Answer(document), notes) == []
    assert "nvidia" in notes.absent


def test_a_jetson_whose_libraries_crash_is_known_by_its_device_tree(tmp_path: Path) -> None:
    notes = Notes()
    board = ("nvidia,p3768-0000+p3767-0000", "nvidia,p3767-0000", "nvidia,tegra234")

    (device,) = read(Sysroot(tmp_path), Answer(reason="crashed with SIGSEGV"), notes, board)

    assert (device.compute_capability, device.arch, device.unified_memory) == ("8.7", "ampere", True)
    assert notes.absent["nvidia"] == "crashed with SIGSEGV"


def test_libraries_are_only_asked_where_a_driver_is(tmp_path: Path) -> None:
    assert not has_driver(Sysroot(tmp_path), ("raspberrypi,4-model-b",))
    assert has_driver(Sysroot(tmp_path), ("nvidia,p3701-0000", "nvidia,tegra234"))
    assert has_driver(sysroot_of(tmp_path, {"/proc/driver/nvidia/version": PROC_VERSION}), ())


@pytest.mark.parametrize(
    ("capability", "cores", "count", "arch"),
    [
        ("6.1", 2560, 20, "pascal"),
        ("7.0", 5120, 80, "volta"),
        ("7.5", 2560, 40, "turing"),
        ("8.0", 6912, 108, "ampere"),
        ("8.7", 1024, 8, "ampere"),
        ("8.9", 7424, 58, "ada"),
        ("9.0", 16896, 132, "hopper"),
        ("11.0", 2560, 20, "blackwell"),
        ("12.1", 6144, 48, "blackwell"),
        ("99.0", 0, 0, ""),
    ],
)
def test_multiprocessors_and_architecture_follow_from_the_capability(
    capability: str, cores: int, count: int, arch: str
) -> None:
    assert multiprocessors(capability, cores) == count
    assert architecture(capability) == arch


def pci(root: Path, name: str, slot: str, driver: str, vendor: str, device: str) -> None:
    folder = root / "sys/devices/pci0000:00" / slot
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n")
    (folder / "device").write_text(f"{device}\n")
    (folder / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")
    entry = root / "sys/class" / name
    entry.mkdir(parents=True)
    (entry / "device").symlink_to(folder)


def core_ultra(root: Path) -> Sysroot:
    pci(root, "drm/renderD128", "0000:00:02.0", "i915", "0x8086", "0x7d55")
    pci(root, "drm/renderD129", "0000:01:00.0", "amdgpu", "0x1002", "0x744c")
    pci(root, "accel/accel0", "0000:00:0b.0", "intel_vpu", "0x8086", "0x7d1d")
    return sysroot_of(root, {"/dev/dri/renderD128": "", "/dev/dri/renderD129": "", "/dev/accel/accel0": ""})


def test_an_intel_gpu_and_npu_are_found_and_others_devices_are_not(tmp_path: Path) -> None:
    gpu, npu = read_intel(core_ultra(tmp_path), Notes(), memory=MEMORY)

    assert (gpu.kind, gpu.arch, gpu.driver, gpu.unified_memory) == ("intel_gpu", "0x7d55", "i915", True)
    assert gpu.memory_bytes == MEMORY.total_bytes
    assert (npu.kind, npu.arch, npu.driver) == ("intel_npu", "npu3720", "intel_vpu")


def test_a_discrete_intel_gpu_does_not_claim_the_machines_memory(tmp_path: Path) -> None:
    pci(tmp_path, "drm/renderD128", "0000:03:00.0", "xe", "0x8086", "0x56a0")
    tree = sysroot_of(tmp_path, {"/dev/dri/renderD128": ""})

    (gpu,) = read_intel(tree, Notes(), memory=MEMORY)

    assert (gpu.memory_bytes, gpu.unified_memory) == (0, False)


def test_a_device_that_was_not_passed_into_the_container_is_absent(tmp_path: Path) -> None:
    pci(tmp_path, "accel/accel0", "0000:00:0b.0", "intel_vpu", "0x8086", "0x7d1d")
    notes = Notes()

    assert read_intel(Sysroot(tmp_path), notes, memory=MEMORY) == ()
    assert "/dev/accel/accel0" in notes.absent["intel_npu"]


def test_openvino_completes_what_sysfs_does_not_say(tmp_path: Path) -> None:
    devices = read_intel(core_ultra(tmp_path), Notes(), memory=MEMORY)
    details = {"GPU.name": "Intel(R) Arc(TM) Graphics", "GPU.execution_units": "128", "NPU.driver": "1.23.0"}
    openvino = RuntimeLibrary("2026.4.1", ("CPU", "GPU", "NPU"), details)

    gpu, npu = (refine_intel(device, devices, openvino) for device in devices)

    assert (gpu.product, gpu.multiprocessors, gpu.memory_bytes) == (
        "Intel(R) Arc(TM) Graphics",
        128,
        MEMORY.total_bytes,
    )
    assert npu.driver == "1.23.0"


def test_with_two_gpus_openvinos_details_are_not_guessed_onto_one() -> None:
    first, second = Accelerator("intel_gpu", arch="0x7d55"), Accelerator("intel_gpu", arch="0x56a0")
    openvino = RuntimeLibrary("2026.4.1", ("GPU", "GPU.0", "GPU.1"), {"GPU.name": "one of them"})

    assert refine_intel(first, (first, second), openvino) == first


KFD = "/sys/class/kfd/kfd/topology/nodes"
MI300 = "simd_count 1216\nsimd_per_cu 4\ngfx_target_version 90402\nunique_id 81985529216486895\nvendor_id 4098\n"
ROCMINFO = "      Name:                    amdgcn-amd-amdhsa--gfx942:sramecc+:xnack-\n"


def amd_tree(root: Path) -> Sysroot:
    return sysroot_of(
        root,
        {
            f"{KFD}/0/properties": "cpu_cores_count 64\nsimd_count 0\ngfx_target_version 0\n",
            f"{KFD}/1/properties": MI300,
            f"{KFD}/1/name": "aqua_vanjaram\n",
            f"{KFD}/1/mem_banks/0/properties": f"heap_type 1\nsize_in_bytes {192 << 30}\n",
            "/sys/module/amdgpu/version": "6.12.12\n",
        },
    )


def test_an_amd_gpu_has_the_full_name_of_its_architecture(tmp_path: Path) -> None:
    facts = read_amd(amd_tree(tmp_path), Notes(), rocminfo=ROCMINFO)

    (device,) = facts.devices
    assert device.arch == "gfx942:sramecc+:xnack-"
    assert (device.multiprocessors, device.memory_bytes, device.driver) == (304, 192 << 30, "6.12.12")
    assert facts.uuids == ("GPU-0123456789abcdef",)


def test_without_rocminfo_the_missing_suffix_is_reported(tmp_path: Path) -> None:
    notes = Notes()

    (device,) = read_amd(amd_tree(tmp_path), notes, rocminfo="").devices

    assert device.arch == "gfx942"
    assert "xnack" in notes.absent["amd_features"]


@pytest.mark.parametrize(
    ("version", "name"),
    [(90402, "gfx942"), (90010, "gfx90a"), (100300, "gfx1030"), (110000, "gfx1100"), (120001, "gfx1201")],
)
def test_amd_versions_are_named_as_the_compiler_names_them(version: int, name: str) -> None:
    assert gfx_name(version) == name


def test_rocminfo_names_are_taken_once_and_in_order() -> None:
    assert full_names(ROCMINFO * 2 + "amdgcn-amd-amdhsa--gfx1100\n") == ("gfx942:sramecc+:xnack-", "gfx1100")
