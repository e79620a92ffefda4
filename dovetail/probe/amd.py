# SPDX-License-Identifier: Apache-2.0
"""AMD GPUs that can compute, from the KFD topology in sysfs.

The feature suffix of the architecture name ("gfx942:sramecc+:xnack-") decides which kernels load but is not in sysfs;
only ROCm's own `rocminfo` tells it. Without it the plain name is given and the doubt is noted.

Source: Linux drivers/gpu/drm/amd/amdkfd/kfd_topology.c and kfd_device.c (gfx_target_version is major*10000 +
minor*100 + stepping, the last two written in hexadecimal in the name).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from dovetail.fingerprint import Accelerator
from dovetail.probe.sysroot import Notes, Sysroot, parse_count

_NODES = "/sys/class/kfd/kfd/topology/nodes"
ROCMINFO = "/opt/rocm/bin/rocminfo"
_FULL_NAME = re.compile(r"amdgcn-amd-amdhsa--(gfx[0-9a-f]+(?::[a-z]+[+-])*)")


@dataclass(frozen=True, slots=True)
class AmdFacts:
    """Devices in the kernel's order, with their ids in the same order."""

    devices: tuple[Accelerator, ...] = ()
    uuids: tuple[str, ...] = ()


def parse_properties(text: str) -> Mapping[str, int]:
    """Numbers of a KFD properties file."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: parse_count(pair[1]) for pair in pairs if len(pair) == 2}


def gfx_name(version: int) -> str:
    """Architecture name: `gfx_name(90402) == "gfx942"`, `gfx_name(90010) == "gfx90a"`."""
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"


def full_names(rocminfo: str) -> tuple[str, ...]:
    """Architecture names with feature suffix, in the order of rocminfo's agents."""
    return tuple(dict.fromkeys(_FULL_NAME.findall(rocminfo)))


def read_amd(tree: Sysroot, notes: Notes, *, rocminfo: str) -> AmdFacts:
    """AMD GPUs; `rocminfo` is what the tool printed, or ""."""
    devices, uuids = [], []
    named = full_names(rocminfo)
    for node in sorted(tree.names(_NODES), key=lambda name: (len(name), name)):
        values = parse_properties(tree.read(f"{_NODES}/{node}/properties") or "")
        version = values.get("gfx_target_version", 0)
        if not version or not values.get("simd_count"):  # CPU nodes are listed too
            continue
        plain = gfx_name(version)
        arch = next((name for name in named if name.split(":")[0] == plain), plain)
        if arch == plain and not rocminfo:
            notes.missing("amd_features", f"{ROCMINFO} is not there: sramecc and xnack of {plain} are unknown")
        notes.found("amd_gpu", _NODES)
        devices.append(_accelerator(tree, node, values, arch))
        uuids.append(f"GPU-{values['unique_id']:016x}" if values.get("unique_id") else "")
    return AmdFacts(tuple(devices), tuple(uuids))


def _accelerator(tree: Sysroot, node: str, values: Mapping[str, int], arch: str) -> Accelerator:
    folder = f"{_NODES}/{node}"
    banks = [
        parse_properties(tree.read(f"{folder}/mem_banks/{bank}/properties") or "")
        for bank in tree.names(f"{folder}/mem_banks")
    ]
    return Accelerator(
        kind="amd_gpu",
        product=(tree.read(f"{folder}/name") or "").strip() or arch.split(":")[0],
        multiprocessors=values["simd_count"] // max(values.get("simd_per_cu", 1), 1),
        memory_bytes=sum(bank.get("size_in_bytes", 0) for bank in banks if bank.get("heap_type") in (1, 2)),
        driver=tree.read("/sys/module/amdgpu/version") or "",
        arch=arch,
    )
