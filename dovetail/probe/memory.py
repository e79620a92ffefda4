# SPDX-License-Identifier: Apache-2.0
"""How much memory this process may ever use, and how much of it is free now.

Source: proc(5) on /proc/meminfo; Linux admin-guide/cgroup-v2.rst ("memory.max") and cgroup-v1/memory.rst; setrlimit(2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dovetail.probe.cgroup import group_folders
from dovetail.probe.sysroot import Notes, Sysroot, parse_count

try:
    import resource
except ImportError:  # Windows has no resource limits
    resource = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class MemoryFacts:
    """Bytes this process may ever use, and bytes it could get now; 0 if unknown."""

    total_bytes: int
    available_bytes: int


def read_address_space_limit() -> int | None:
    """RLIMIT_AS of this process in bytes, or None without a limit."""
    if resource is None:
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def parse_meminfo(text: str) -> Mapping[str, int]:
    """Bytes of each line of /proc/meminfo that counts kB."""
    values = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB":
            values[name] = parse_count(words[0]) * 1024
    return values


def read_memory(tree: Sysroot, notes: Notes, *, address_space_limit: int | None) -> MemoryFacts:
    """Memory of this process; `address_space_limit` is RLIMIT_AS in bytes."""
    values = parse_meminfo(tree.read("/proc/meminfo") or "")
    total = values.get("MemTotal", 0)
    available = values.get("MemAvailable", values.get("MemFree", 0))
    if not 0 < total < 1 << 63:
        notes.missing("memory", "/proc/meminfo has no credible MemTotal")
        return MemoryFacts(0, 0)
    source = "/proc/meminfo"
    for version, folder in group_folders(tree, "memory"):
        limit, used = _group_memory(tree, version, folder)
        if limit is None or limit >= values["MemTotal"]:
            continue
        available = min(available, max(limit - used, 0))
        if limit < total:
            total, source = limit, f"{folder} (cgroup v{version})"
    if address_space_limit is not None and address_space_limit < total:
        total, source = address_space_limit, "RLIMIT_AS"
    notes.found("memory_bytes", source)
    return MemoryFacts(total_bytes=total, available_bytes=min(available, total))


def _group_memory(tree: Sysroot, version: int, folder: str) -> tuple[int | None, int]:
    """Limit and bytes in use that the kernel cannot take back; clean file cache does not count as used."""
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    limit = tree.read_int(f"{folder}/{names[0]}")  # "max" is not a number: no limit
    used = tree.read_int(f"{folder}/{names[1]}") or 0
    key = "inactive_file" if version == 2 else "total_inactive_file"
    for line in (tree.read(f"{folder}/memory.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            used = max(used - parse_count(value), 0)
    return limit, used
