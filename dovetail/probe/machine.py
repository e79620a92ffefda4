# SPDX-License-Identifier: Apache-2.0
"""One measurement of this machine: all probes put together.

File probes run in a thread (a few milliseconds), library probes in child processes at the same time. Nothing here
raises: whatever goes wrong becomes an entry in `instance.absent`, and the least result is still a valid fingerprint.
"""

from __future__ import annotations

import asyncio
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from dovetail.fingerprint import Accelerator, ClassFacts, Fingerprint, InstanceFacts, RuntimeLibrary
from dovetail.probe.amd import ROCMINFO, AmdFacts, read_amd
from dovetail.probe.board import BoardFacts, read_board, read_power_mode
from dovetail.probe.child import TIMEOUT_S, Answer, ask
from dovetail.probe.cores import CoreFacts, read_affinity, read_cores
from dovetail.probe.cpu import CpuFacts, read_cpu
from dovetail.probe.cpuid import CpuId, parse_leaves
from dovetail.probe.hwcap import read_hwcaps
from dovetail.probe.intel import read_intel
from dovetail.probe.interpreter import read_arch, read_libc
from dovetail.probe.memory import MemoryFacts, read_address_space_limit, read_memory
from dovetail.probe.nvidia import NvidiaFacts, has_driver, read_nvidia
from dovetail.probe.runtimes import ask_libraries, module_file, read_torch, usable
from dovetail.probe.sysroot import Notes, Sysroot
from dovetail.probe.tool import run_tool
from dovetail.probe.topology import read_last_level_cache, read_numa_nodes
from dovetail.probe.virtualisation import read_container, read_emulator, read_hypervisor

_T = TypeVar("_T")


async def measure(*, runtimes: bool = True) -> Fingerprint:
    """Measure this machine; takes about as long as importing the slowest installed library (under 2 s on a server).

    Args:
        runtimes: False leaves the inference libraries out (for a quick look at the hardware); such a fingerprint must
            not be used to negotiate, because it says that nothing can run.

    Returns:
        A fingerprint with origin "measured". Never raises; `instance.absent` says what could not be read and why.
    """
    return await measure_tree(Sysroot(), runtimes=runtimes)


def measure_sync(*, runtimes: bool = True) -> Fingerprint:
    """`measure` for code that runs no event loop."""
    return asyncio.run(measure(runtimes=runtimes))


async def measure_tree(tree: Sysroot, *, runtimes: bool = True, timeout_s: float = TIMEOUT_S) -> Fingerprint:
    """`measure` with /proc, /sys and /dev read below another root; libraries are those of this process."""
    notes = Notes()
    board = _guarded(notes, "board", BoardFacts(), lambda: read_board(tree, notes))
    arch = _guarded(notes, "arch", platform.machine() or "unknown", lambda: read_arch(notes))
    cpuid, nvidia, rocminfo, libraries = await asyncio.gather(
        _ask_cpuid(notes, arch, timeout_s),
        _ask_nvidia(tree, notes, board, timeout_s),
        _ask_rocminfo(tree),
        ask_libraries(notes, timeout_s=timeout_s) if runtimes else _nothing(notes),
    )
    asked = _Asked(cpuid, nvidia, rocminfo)
    hardware = await asyncio.to_thread(_read_hardware, tree, notes, arch, board, asked)
    if runtimes:
        torch = _guarded(notes, "torch", None, lambda: read_torch(notes, module_file("torch")))
        libraries = {**libraries, "torch": torch} if torch else libraries
    return _assemble(hardware, libraries, notes)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What children and tools said about the hardware; None or "" where nobody was asked."""

    cpuid: CpuId | None
    nvidia: Answer | None
    rocminfo: str


@dataclass(frozen=True, slots=True)
class _Devices:
    """Accelerators, with their UUIDs and free bytes in the same order."""

    accelerators: tuple[Accelerator, ...]
    uuids: tuple[str, ...]
    free_bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Hardware:
    """What was read from files and devices."""

    arch: str
    board: BoardFacts
    cores: CoreFacts
    cpu: CpuFacts
    memory: MemoryFacts
    devices: _Devices
    numa_nodes: int
    cache_bytes: int
    libc: str
    hypervisor: str
    container: str
    emulator: str
    power_mode: str


def _read_hardware(tree: Sysroot, notes: Notes, arch: str, board: BoardFacts, asked: _Asked) -> _Hardware:
    def guarded(probe: str, default: _T, read: Callable[[], _T]) -> _T:
        return _guarded(notes, probe, default, read)

    affinity = read_affinity()
    least = CoreFacts(affinity, max(len(affinity), 1), 0)
    cores = guarded("cores", least, lambda: read_cores(tree, notes, affinity=affinity))
    cpus, cpuid = cores.cpus, asked.cpuid
    limit = guarded("rlimit", None, read_address_space_limit)
    memory = guarded("memory", MemoryFacts(0, 0), lambda: read_memory(tree, notes, address_space_limit=limit))
    hypervisor = guarded(
        "hypervisor", "", lambda: read_hypervisor(tree, notes, arch=arch, cpuid=cpuid, product=board.product)
    )
    return _Hardware(
        arch=arch,
        board=board,
        cores=cores,
        cpu=guarded(
            "cpu", CpuFacts(), lambda: read_cpu(tree, notes, arch=arch, cpus=cpus, hwcaps=read_hwcaps(), cpuid=cpuid)
        ),
        memory=memory,
        devices=_read_devices(tree, notes, asked, board, memory),
        numa_nodes=guarded("numa", 1, lambda: read_numa_nodes(tree, notes, cpus=cpus)),
        cache_bytes=guarded("cache", 0, lambda: read_last_level_cache(tree, notes, cpus=cpus)),
        libc=guarded("libc", "", lambda: read_libc(tree, notes)),
        hypervisor=hypervisor,
        container=guarded("container", "", lambda: read_container(tree, notes)),
        emulator=guarded("emulator", "", lambda: read_emulator(tree, notes, arch=arch, hypervisor=hypervisor)),
        power_mode=guarded("power_mode", "", lambda: read_power_mode(tree, notes, cpus=cpus)),
    )


def _read_devices(tree: Sysroot, notes: Notes, asked: _Asked, board: BoardFacts, memory: MemoryFacts) -> _Devices:
    nvidia, answer = NvidiaFacts(), asked.nvidia
    if answer is not None:
        names = board.compatible
        nvidia = _guarded(notes, "nvidia", nvidia, lambda: read_nvidia(tree, notes, answer, board=names, memory=memory))
    amd = _guarded(notes, "amd", AmdFacts(), lambda: read_amd(tree, notes, rocminfo=asked.rocminfo))
    none: tuple[Accelerator, ...] = ()
    intel = _guarded(notes, "intel", none, lambda: read_intel(tree, notes, memory=memory))
    return _Devices(
        accelerators=(*nvidia.devices, *amd.devices, *intel),
        uuids=(*nvidia.uuids, *amd.uuids, *("",) * len(intel)),
        free_bytes=(*nvidia.free_bytes, *(0,) * (len(amd.devices) + len(intel))),
    )


def _assemble(hardware: _Hardware, libraries: Mapping[str, RuntimeLibrary], notes: Notes) -> Fingerprint:
    openvino = libraries.get("openvino")
    devices = hardware.devices
    accelerators = tuple(refine_intel(device, devices.accelerators, openvino) for device in devices.accelerators)
    facts = ClassFacts(
        arch=hardware.arch,
        os=sys.platform,
        libc=hardware.libc,
        cpu_features=hardware.cpu.features,
        cpu_vendor=hardware.cpu.vendor,
        cpu_parts=hardware.cpu.parts,
        usable_cores=hardware.cores.usable,
        efficiency_cores=hardware.cores.efficiency,
        numa_nodes=hardware.numa_nodes,
        l3_bytes=hardware.cache_bytes,
        memory_bytes=hardware.memory.total_bytes,
        board=hardware.board.name,
        l4t=hardware.board.l4t,
        accelerators=accelerators,
        runtimes=usable(libraries, accelerators, notes),
    )
    instance = InstanceFacts(
        hostname=platform.node(),
        kernel=platform.release(),
        cpu_name=hardware.cpu.name,
        product=hardware.board.product,
        hypervisor=hardware.hypervisor,
        container=hardware.container,
        memory_available_bytes=hardware.memory.available_bytes,
        device_uuids=devices.uuids,
        device_memory_free_bytes=devices.free_bytes,
        power_mode=hardware.power_mode,
        emulated_by=hardware.emulator,
        absent=dict(sorted(notes.absent.items())),
        sources=dict(sorted(notes.sources.items())),
    )
    return Fingerprint(facts=facts, instance=instance)


def refine_intel(device: Accelerator, beside: tuple[Accelerator, ...], openvino: RuntimeLibrary | None) -> Accelerator:
    """The same Intel device with name, execution units and memory as OpenVINO tells them.

    OpenVINO does not say which kernel device its "GPU" is, so with two GPUs nothing is taken over.
    """
    name = {"intel_gpu": "GPU", "intel_npu": "NPU"}.get(device.kind, "")
    alone = sum(1 for other in beside if other.kind == device.kind) == 1
    if openvino is None or not name or not alone or name not in openvino.devices:
        return device
    details = openvino.details
    units, size = (_number(details.get(f"{name}.{field}", "")) for field in ("execution_units", "memory_bytes"))
    return replace(
        device,
        product=details.get(f"{name}.name", device.product),
        multiprocessors=units or device.multiprocessors,
        memory_bytes=device.memory_bytes or size,
        driver=details.get(f"{name}.driver", "") or device.driver,
    )


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


async def _ask_cpuid(notes: Notes, arch: str, timeout_s: float) -> CpuId | None:
    if arch != "x86_64" or sys.platform != "linux":
        return None
    answer = await ask("cpuid", isolated=True, timeout_s=timeout_s)
    cpuid = parse_leaves(answer.document) if answer.document else None
    if cpuid is None:
        notes.missing("cpuid", answer.reason or "the child's answer cannot be read")
    return cpuid


async def _ask_nvidia(tree: Sysroot, notes: Notes, board: BoardFacts, timeout_s: float) -> Answer | None:
    if not has_driver(tree, board.compatible):
        notes.missing("nvidia", "no driver: neither /proc/driver/nvidia nor an NVIDIA device node is there")
        return None
    return await ask("nvidia", timeout_s=timeout_s)


async def _ask_rocminfo(tree: Sysroot) -> str:
    return await run_tool(str(tree.path(ROCMINFO))) if tree.exists("/sys/class/kfd") and tree.exists(ROCMINFO) else ""


async def _nothing(notes: Notes) -> dict[str, RuntimeLibrary]:
    notes.missing("runtimes", "not asked for")
    return {}


def _guarded(notes: Notes, probe: str, default: _T, read: Callable[[], _T]) -> _T:
    """Result of a probe; its surprise becomes a note. A device that cannot say one thing can still serve."""
    try:
        return read()
    except (OSError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as exc:
        notes.missing(probe, f"failed: {type(exc).__name__}: {exc}")
        return default
