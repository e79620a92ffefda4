# SPDX-License-Identifier: Apache-2.0
"""Which control group directories limit this process, for cgroup v1, v2 and both at once.

A limit may sit on any ancestor, so every directory from the process's own group up to the mount is returned; the
readers in `cores` and `memory` take the smallest limit found.

Source: cgroups(7); proc(5) on /proc/self/cgroup and /proc/self/mountinfo; Linux admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass

from dovetail.probe.sysroot import Sysroot


@dataclass(frozen=True, slots=True)
class CgroupMount:
    """One cgroup file system.

    Attributes:
        point: Where it is mounted.
        root: Which group of the hierarchy is mounted there.
        controllers: v1 controllers; empty for v2.
        version: 1 or 2.
    """

    point: str
    root: str
    controllers: frozenset[str]
    version: int


def parse_membership(text: str) -> Mapping[str, str]:
    """Group path for each v1 controller, and for "" (v2), from /proc/self/cgroup."""
    groups: dict[str, str] = {}
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            groups.update(dict.fromkeys(parts[1].split(","), parts[2]))
    return groups


def parse_mounts(text: str) -> tuple[CgroupMount, ...]:
    """The cgroup mounts in /proc/self/mountinfo."""
    mounts = []
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if not separator or len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        version = 2 if kind[0] == "cgroup2" else 1
        controllers = frozenset(kind[2].split(",")) if version == 1 else frozenset()
        mounts.append(CgroupMount(point=fields[4], root=fields[3], controllers=controllers, version=version))
    return tuple(mounts)


def group_folders(tree: Sysroot, controller: str) -> tuple[tuple[int, str], ...]:
    """Version and directory of every group that limits this process for `controller`, the process's own group first."""
    groups = parse_membership(tree.read("/proc/self/cgroup") or "")
    folders: list[tuple[int, str]] = []
    for mount in parse_mounts(tree.read("/proc/self/mountinfo") or ""):
        if mount.version == 1 and controller not in mount.controllers:
            continue
        group = groups.get(controller if mount.version == 1 else "", "/")
        folders.extend((mount.version, folder) for folder in _ancestors(mount, group))
    return tuple(folders)


def _ancestors(mount: CgroupMount, group: str) -> tuple[str, ...]:
    """Directories from the group up to the mount point. Outside the mounted part only the mount point can be seen."""
    relative = posixpath.relpath(group, mount.root) if group.startswith("/") else "."
    if relative.startswith(".."):
        relative = "."
    folders = []
    while relative not in ("", "."):
        folders.append(posixpath.join(mount.point, relative))
        relative = posixpath.dirname(relative)
    return (*folders, mount.point)
