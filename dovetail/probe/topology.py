# SPDX-License-Identifier: Apache-2.0
"""NUMA nodes and last-level cache of the usable cores.

OpenVINO keeps a copy of the weights for each NUMA node (OpenVINO issues 17942 and 18860), so the number of nodes
changes how much memory a model needs.

Source: Linux Documentation/ABI/stable/sysfs-devices-node and ABI/testing/sysfs-devices-system-cpu (cache/index*).
"""

from __future__ import annotations

from dovetail.probe.sysroot import Notes, Sysroot, parse_count, parse_cpu_list

_NODES = "/sys/devices/system/node"
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def read_numa_nodes(tree: Sysroot, notes: Notes, *, cpus: frozenset[int]) -> int:
    """Number of NUMA nodes that hold usable CPUs; 1 where the kernel shows none."""
    nodes = [name for name in tree.names(_NODES) if name.startswith("node") and name[4:].isdecimal()]
    used = sum(1 for name in nodes if parse_cpu_list(tree.read(f"{_NODES}/{name}/cpulist") or "") & cpus)
    if used:
        notes.found("numa_nodes", f"{_NODES}/node*/cpulist")
    return max(used, 1)


def read_last_level_cache(tree: Sysroot, notes: Notes, *, cpus: frozenset[int]) -> int:
    """Bytes of the largest last-level cache of a usable core; 0 if the kernel does not show caches."""
    largest = 0
    for cpu in cpus:
        folder = f"/sys/devices/system/cpu/cpu{cpu}/cache"
        caches = [
            (tree.read_int(f"{folder}/{name}/level") or 0, parse_size(tree.read(f"{folder}/{name}/size") or ""))
            for name in tree.names(folder)
            if name.startswith("index") and tree.read(f"{folder}/{name}/type") != "Instruction"
        ]
        largest = max(largest, max(caches, default=(0, 0))[1])
    if largest:
        notes.found("l3_bytes", "/sys/devices/system/cpu/cpu*/cache/index*")
    else:
        notes.missing("cache", "the kernel shows no cache sizes (common on ARM device trees)")
    return largest


def parse_size(text: str) -> int:
    """Bytes of sysfs's cache size: `parse_size("32768K") == 33554432`; 0 if it is not one."""
    unit = _UNITS.get(text[-1:].upper(), 1)
    digits = text[:-1] if text[-1:].upper() in _UNITS else text
    size = parse_count(digits) * unit
    return size if size < 1 << 40 else 0  # no cache has a tebibyte
