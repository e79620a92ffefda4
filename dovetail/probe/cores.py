# SPDX-License-Identifier: Apache-2.0
"""How many cores this process may use, and how many of them are small.

Thread pools sized to the host's cores are the classic container slowdown (ONNX Runtime issue 29510, OpenVINO issue
37838), so affinity, cpuset and CPU quota all count, in cgroup v1 and v2.

Source: sched_getaffinity(2); Linux scheduler/sched-bwc.rst (v1 quota) and admin-guide/cgroup-v2.rst ("cpu.max");
Documentation/ABI/testing/sysfs-devices-system-cpu (cpu_capacity); Intel hybrid PMUs (cpu_core, cpu_atom).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from dovetail.probe.cgroup import group_folders
from dovetail.probe.sysroot import Notes, Sysroot, parse_cpu_list

_LITTLE_SHARE = 3 / 4
"""A core below this share of the largest capacity is small. Shares of known parts: Cortex-A53 beside A72 0.44, A55
beside A76 0.42, Icestorm beside Firestorm 0.45, A725 beside X925 (GB10; NVIDIA calls them high-efficiency cores) 0.72
by clock alone."""


@dataclass(frozen=True, slots=True)
class CoreFacts:
    """What may be used.

    Attributes:
        cpus: Numbers of the CPUs that the affinity mask and cpuset allow.
        usable: Whole cores: the number of those CPUs or the quota, at least 1.
        efficiency: How many of `usable` are small cores; a quota is taken to be spent on large cores first.
    """

    cpus: frozenset[int]
    usable: int
    efficiency: int


def read_affinity() -> frozenset[int]:
    """CPUs this process may run on; all of them where the system has no affinity mask (macOS)."""
    try:
        return frozenset(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return frozenset(range(os.cpu_count() or 1))


def read_cores(tree: Sysroot, notes: Notes, *, affinity: frozenset[int]) -> CoreFacts:
    """Usable cores of this process."""
    cpus, source = affinity, "sched_getaffinity"
    cpuset = _cpuset(tree)
    if cpuset and cpus & cpuset != cpus and cpus & cpuset:
        cpus, source = cpus & cpuset, f"{source}, cgroup cpuset"
    usable = max(len(cpus), 1)
    quota = quota_cores(tree)
    if quota is not None and quota < usable:
        usable, source = max(int(quota), 1), f"{source}, cgroup quota of {quota:g} cores"
    notes.found("usable_cores", source)
    small = _small_cpus(tree, cpus, notes)
    return CoreFacts(cpus=cpus, usable=usable, efficiency=max(usable - len(cpus - small), 0) if small else 0)


def quota_cores(tree: Sysroot) -> float | None:
    """Smallest CPU quota of all groups this process is in, in cores; None without a quota."""
    quotas = [
        value for version, folder in group_folders(tree, "cpu") if (value := _quota(tree, version, folder)) is not None
    ]
    return min(quotas, default=None)


def _quota(tree: Sysroot, version: int, folder: str) -> float | None:
    if version == 2:
        quota, _, period = (tree.read(f"{folder}/cpu.max") or "max").partition(" ")
    else:
        quota = tree.read(f"{folder}/cpu.cfs_quota_us") or "-1"
        period = tree.read(f"{folder}/cpu.cfs_period_us") or ""
    try:
        share = int(quota) / int(period or 100_000)  # 100 ms is the kernel's default period
    except (ValueError, ZeroDivisionError):
        return None
    return share if share > 0 else None


def _cpuset(tree: Sysroot) -> frozenset[int]:
    for version, folder in group_folders(tree, "cpuset"):
        names = ("cpuset.cpus.effective",) if version == 2 else ("cpuset.effective_cpus", "cpuset.cpus")
        for name in names:
            if cpus := parse_cpu_list(tree.read(f"{folder}/{name}") or ""):
                return cpus
    return frozenset()


def _small_cpus(tree: Sysroot, cpus: frozenset[int], notes: Notes) -> frozenset[int]:
    atoms = parse_cpu_list(tree.read("/sys/devices/cpu_atom/cpus") or "")
    atoms |= parse_cpu_list(tree.read("/sys/devices/cpu_lowpower/cpus") or "")
    if atoms:
        notes.found("efficiency_cores", "/sys/devices/cpu_atom/cpus")
        return cpus & atoms
    capacities = _capacities(tree)
    if len(set(capacities.values())) < 2:
        return frozenset()
    notes.found("efficiency_cores", "/sys/devices/system/cpu/cpu*/cpu_capacity")
    largest = max(capacities.values())
    return frozenset(cpu for cpu in cpus if capacities.get(cpu, largest) < largest * _LITTLE_SHARE)


def _capacities(tree: Sysroot) -> Mapping[int, int]:
    folder = "/sys/devices/system/cpu"
    numbers = [int(name[3:]) for name in tree.names(folder) if name.startswith("cpu") and name[3:].isdecimal()]
    read = {cpu: tree.read_int(f"{folder}/cpu{cpu}/cpu_capacity") for cpu in numbers}
    return {cpu: value for cpu, value in read.items() if value}
