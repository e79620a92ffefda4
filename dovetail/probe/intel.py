# SPDX-License-Identifier: Apache-2.0
"""Intel GPUs and NPUs from sysfs: what the kernel's driver has bound, without loading any compute library.

Memory and execution units are not in sysfs; `machine` takes them from what OpenVINO tells in its own child process.

Source: Linux Documentation/gpu/drm-uapi.rst (render nodes) and drivers/accel/ivpu/ivpu_drv.h (device ids).
"""

from __future__ import annotations

from dovetail.fingerprint import Accelerator
from dovetail.probe.memory import MemoryFacts
from dovetail.probe.sysroot import Notes, Sysroot

_INTEL = 0x8086
_DRM = "/sys/class/drm"
_ACCEL = "/sys/class/accel"
_INTEGRATED_SLOT = "0000:00:02.0"  # every Intel integrated GPU sits there; discrete ones never do

# Device id -> platform number as OpenVINO's NPU_ARCHITECTURE names it, and the product line.
_NPUS = {
    0x7D1D: ("npu3720", "Intel NPU (Meteor Lake)"),
    0xAD1D: ("npu3720", "Intel NPU (Arrow Lake)"),
    0x643E: ("npu4000", "Intel NPU (Lunar Lake)"),
    0xB03E: ("npu5010", "Intel NPU (Panther Lake)"),
    0xFD3E: ("npu5010", "Intel NPU (Wildcat Lake)"),
}


def read_intel(tree: Sysroot, notes: Notes, *, memory: MemoryFacts) -> tuple[Accelerator, ...]:
    """GPUs, then NPUs. The driver is a name without version: that is the kernel's, an instance fact."""
    return (*_gpus(tree, notes, memory), *_npus(tree, notes, memory))


def _gpus(tree: Sysroot, notes: Notes, memory: MemoryFacts) -> tuple[Accelerator, ...]:
    found = []
    for name in tree.names(_DRM):
        folder = f"{_DRM}/{name}/device"
        if not name.startswith("renderD") or tree.read_int(f"{folder}/vendor") != _INTEL:
            continue
        if not _may_open(tree, f"/dev/dri/{name}", notes, "intel_gpu"):
            continue
        device = tree.read_int(f"{folder}/device") or 0
        integrated = tree.link_name(folder) == _INTEGRATED_SLOT
        notes.found("intel_gpu", folder)
        found.append(
            Accelerator(
                kind="intel_gpu",
                product=f"Intel GPU 0x{device:04x}",
                memory_bytes=memory.total_bytes if integrated else 0,
                unified_memory=integrated,
                driver=tree.link_name(f"{folder}/driver"),
                arch=f"0x{device:04x}",
            )
        )
    return tuple(found)


def _npus(tree: Sysroot, notes: Notes, memory: MemoryFacts) -> tuple[Accelerator, ...]:
    found = []
    for name in tree.names(_ACCEL):
        folder = f"{_ACCEL}/{name}/device"
        if tree.read_int(f"{folder}/vendor") != _INTEL or tree.link_name(f"{folder}/driver") != "intel_vpu":
            continue
        if not _may_open(tree, f"/dev/accel/{name}", notes, "intel_npu"):
            continue
        device = tree.read_int(f"{folder}/device") or 0
        arch, product = _NPUS.get(device, (f"0x{device:04x}", f"Intel NPU 0x{device:04x}"))
        notes.found("intel_npu", folder)
        found.append(
            Accelerator(
                kind="intel_npu",
                product=product,
                memory_bytes=memory.total_bytes,
                unified_memory=True,
                driver="intel_vpu",
                arch=arch,
            )
        )
    return tuple(found)


def _may_open(tree: Sysroot, node: str, notes: Notes, probe: str) -> bool:
    """A container sees the host's /sys but only the device nodes that were handed to it."""
    if tree.exists(node):
        return True
    notes.missing(probe, f"the kernel lists {node}, but it is not there (not passed into this container?)")
    return False
