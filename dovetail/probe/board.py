# SPDX-License-Identifier: Apache-2.0
"""Which board this is, which L4T release a Jetson runs, and in which power mode it is.

Source: Devicetree specification 2.3.1 ("compatible"), Linux ABI/testing/sysfs-firmware-ofw and sysfs-class-dmi (x86);
NVIDIA Jetson Linux Developer Guide r36, /etc/nv_tegra_release and "nvpmodel".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dovetail.probe.sysroot import Notes, Sysroot

# /proc/device-tree is a link to the second place; containers often have only one of them.
_DEVICE_TREES = ("/proc/device-tree", "/sys/firmware/devicetree/base")
_DMI = "/sys/class/dmi/id"
_L4T = re.compile(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)")
_L4T_PACKAGE = re.compile(r"^Package: nvidia-l4t-core\n(?:.+\n)*?Version: (\d+\.\d+(?:\.\d+)*)", re.MULTILINE)
_PMODE = re.compile(r"pmode:(\d+)")


@dataclass(frozen=True, slots=True)
class BoardFacts:
    """What the firmware says.

    Attributes:
        compatible: Device tree names, most specific first; empty on machines without one.
        product: Name for people: device tree model, or DMI vendor and product.
        l4t: "36.4.3" on a Jetson, else "".
    """

    compatible: tuple[str, ...] = ()
    product: str = ""
    l4t: str = ""

    @property
    def name(self) -> str:
        """The most specific device tree name, or ""."""
        return self.compatible[0] if self.compatible else ""


def read_board(tree: Sysroot, notes: Notes) -> BoardFacts:
    """Board facts; what is not there is ""."""
    compatible, product = _device_tree(tree, notes)
    if not product:
        words = (tree.read(f"{_DMI}/{name}") or "" for name in ("sys_vendor", "product_name"))
        product = " ".join(" ".join(words).split())
        if product:
            notes.found("product", _DMI)
    l4t = _read_l4t(tree, notes)
    if not compatible and not product:
        notes.missing("board", "neither a device tree nor DMI is there")
    return BoardFacts(compatible=compatible, product=product, l4t=l4t)


def _device_tree(tree: Sysroot, notes: Notes) -> tuple[tuple[str, ...], str]:
    for folder in _DEVICE_TREES:
        text = tree.read(f"{folder}/compatible")
        if text:
            notes.found("board", f"{folder}/compatible")
            return tuple(name for name in text.split("\0") if name), tree.read(f"{folder}/model") or ""
    return (), ""


def parse_l4t(text: str) -> str:
    """L4T release: `parse_l4t("# R36 (release), REVISION: 4.3, GCID: …") == "36.4.3"`; "" if it is not there."""
    match = _L4T.search(text)
    return f"{match[1]}.{match[2]}" if match else ""


def _read_l4t(tree: Sysroot, notes: Notes) -> str:
    if l4t := parse_l4t(tree.read("/etc/nv_tegra_release") or ""):
        notes.found("l4t", "/etc/nv_tegra_release")
        return l4t
    if match := _L4T_PACKAGE.search(tree.read("/var/lib/dpkg/status", limit_bytes=32 << 20) or ""):
        notes.found("l4t", "package nvidia-l4t-core")
        return match[1]
    return ""


def read_power_mode(tree: Sysroot, notes: Notes, *, cpus: frozenset[int]) -> str:
    """Jetson's power mode such as "MAXN", else the frequency governors of the usable cores; "" if unknown."""
    match = _PMODE.search(tree.read("/var/lib/nvpmodel/status") or "")
    if match:
        notes.found("power_mode", "/var/lib/nvpmodel/status")
        return nvpmodel_name(tree.read("/etc/nvpmodel.conf") or "", int(match[1]))
    names = {tree.read(f"/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor") or "" for cpu in cpus} - {""}
    if names:
        notes.found("power_mode", "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor")
    else:
        notes.missing("power_mode", "no nvpmodel status and no cpufreq governor")
    return "+".join(sorted(names))


def nvpmodel_name(config: str, mode: int) -> str:
    """Name of a power mode in /etc/nvpmodel.conf, or "mode N" if it is not defined there."""
    match = re.search(rf"^<\s*POWER_MODEL\s+ID={mode}\s+NAME=(\S+)", config, re.MULTILINE)
    return match[1] if match else f"mode {mode}"
