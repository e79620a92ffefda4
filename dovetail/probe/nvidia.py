# SPDX-License-Identifier: Apache-2.0
"""NVIDIA devices: discrete GPUs, MIG slices, and the GPUs of Jetson and GB10 that share the CPU's memory.

Whether a driver is there is read from files; only then a child process asks the libraries (`nvidia_child.py`). This
file turns its answer into accelerators.

Source: NVIDIA "CUDA GPUs" compute capability table; CUDA C++ Programming Guide, "Compute Capabilities" (cores for each
multiprocessor); NVML reference: nvmlDeviceGetMemoryInfo is NOT_SUPPORTED with unified memory (ollama issue 12619).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dovetail.fingerprint import Accelerator
from dovetail.probe.child import Answer
from dovetail.probe.memory import MemoryFacts
from dovetail.probe.sysroot import Notes, Sysroot

KIND = "nvidia_gpu"
_DRIVER_FILES = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvgpu", "/dev/dxg")
_DRIVER_VERSION = re.compile(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s")
_MIG_PROFILE = re.compile(r"\bMIG (\d+c?\.?\d*g\.\d+gb\S*)")

# Compute capabilities that only exist with memory shared with the CPU: Tegra X1 to Thor (10.1 is Thor's under CUDA 12)
# and GB10.
_UNIFIED = frozenset({"5.3", "6.2", "7.2", "8.7", "10.1", "11.0", "12.1"})
_CORES_PER_MULTIPROCESSOR = {"6.0": 64, "7.0": 64, "7.2": 64, "7.5": 64, "8.0": 64}
_MOST_CORES_PER_MULTIPROCESSOR = 128

_TEGRA = {
    "nvidia,tegra210": ("Tegra X1", "5.3"),
    "nvidia,tegra186": ("Tegra X2", "6.2"),
    "nvidia,tegra194": ("Xavier", "7.2"),
    "nvidia,tegra234": ("Orin", "8.7"),
    "nvidia,tegra264": ("Thor", "11.0"),
}


@dataclass(frozen=True, slots=True)
class NvidiaFacts:
    """Devices in NVML's order, with their UUIDs and free bytes in the same order."""

    devices: tuple[Accelerator, ...] = ()
    uuids: tuple[str, ...] = ()
    free_bytes: tuple[int, ...] = ()


def has_driver(tree: Sysroot, board: tuple[str, ...]) -> bool:
    """True if it is worth asking the libraries: a driver's files are there, or the board is a Jetson."""
    return any(tree.exists(name) for name in _DRIVER_FILES) or _tegra(board) is not None


def read_nvidia(
    tree: Sysroot, notes: Notes, answer: Answer, *, board: tuple[str, ...], memory: MemoryFacts
) -> NvidiaFacts:
    """Devices from the child's answer; on a Jetson whose libraries do not answer, from its device tree."""
    found = _parse(answer.document, memory, _driver(tree)) if answer.document else NvidiaFacts()
    if found.devices:
        notes.found(KIND, str(answer.document.get("source", "")))
        return found
    reason = answer.reason or "the answer names no device"
    notes.missing("nvidia", reason)
    tegra = _tegra(board)
    if tegra is None:
        return NvidiaFacts()
    notes.found(KIND, "device tree compatible")
    product, capability = tegra
    device = Accelerator(
        kind=KIND,
        product=product,
        compute_capability=capability,
        memory_bytes=memory.total_bytes,
        unified_memory=True,
        arch=architecture(capability),
    )
    return NvidiaFacts((device,), ("",), (memory.available_bytes,))


def _parse(document: Mapping[str, Any], memory: MemoryFacts, driver: str) -> NvidiaFacts:
    devices, uuids, free = [], [], []
    try:
        for entry in document["devices"]:
            devices.append(_accelerator(entry, document, memory, driver))
            uuids.append(str(entry.get("uuid") or ""))
            free.append(
                memory.available_bytes if devices[-1].unified_memory else int(entry.get("memory_free_bytes") or 0)
            )
    except (KeyError, TypeError, ValueError, AttributeError):
        return NvidiaFacts()
    return NvidiaFacts(tuple(devices), tuple(uuids), tuple(free))


def _accelerator(
    entry: Mapping[str, Any], document: Mapping[str, Any], memory: MemoryFacts, driver: str
) -> Accelerator:
    major, minor = (int(value) for value in entry["compute_capability"])
    capability = f"{major}.{minor}"
    name = str(entry["name"])
    profile = _MIG_PROFILE.search(name) if entry.get("mig") else None
    size = int(entry.get("memory_bytes") or 0)
    unified = capability in _UNIFIED or not size
    cuda = int(document.get("cuda") or 0)
    return Accelerator(
        kind=KIND,
        product=name.split(" MIG ")[0],
        compute_capability=capability,
        multiprocessors=int(entry.get("multiprocessors") or 0)
        or multiprocessors(capability, int(entry.get("cores") or 0)),
        memory_bytes=memory.total_bytes if unified else size,
        unified_memory=unified,
        driver=str(document.get("driver") or driver),
        cuda=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else "",
        mig_profile=profile[1] if profile else "",
        arch=architecture(capability),
    )


def multiprocessors(capability: str, cores: int) -> int:
    """Streaming multiprocessors from the number of CUDA cores; 0 if that is unknown."""
    return cores // _CORES_PER_MULTIPROCESSOR.get(capability, _MOST_CORES_PER_MULTIPROCESSOR)


def architecture(capability: str) -> str:
    """NVIDIA's name for a compute capability: "ada" for "8.9"; "" if it is newer than this table."""
    major, _, minor = capability.partition(".")
    names = {"5": "maxwell", "6": "pascal", "9": "hopper", "10": "blackwell", "11": "blackwell", "12": "blackwell"}
    if major == "7":
        return "turing" if minor == "5" else "volta"
    if major == "8":
        return "ada" if minor == "9" else "ampere"
    return names.get(major, "")


def _driver(tree: Sysroot) -> str:
    match = _DRIVER_VERSION.search(tree.read("/proc/driver/nvidia/version") or "")
    return match[1] if match else ""


def _tegra(board: tuple[str, ...]) -> tuple[str, str] | None:
    return next((_TEGRA[name] for name in board if name in _TEGRA), None)
