# SPDX-License-Identifier: Apache-2.0
"""Whether this process runs in a virtual machine, a container or an emulator.

Nothing is decided by these facts; they explain numbers that look odd.

Source: hypervisor CPUID leaf 0x40000000 (Linux arch/x86/kernel/cpu/hypervisor.c, QEMU "TCGTCGTCGTCG"); systemd
src/basic/virt.c for the order of container marks; QEMU linux-user/syscall.c: it answers /proc/self/exe itself, but
not /proc/thread-self/exe.
"""

from __future__ import annotations

from dovetail.probe.cpu import CPUINFO
from dovetail.probe.cpuid import CpuId
from dovetail.probe.sysroot import Notes, Sysroot

_SIGNATURES = {
    "KVMKVMKVM": "kvm",
    "Linux KVM Hv": "kvm",
    "Microsoft Hv": "hyper-v",
    "VMwareVMware": "vmware",
    "XenVMMXenVMM": "xen",
    "VBoxVBoxVBox": "virtualbox",
    "bhyve bhyve": "bhyve",
    "ACRNACRNACRN": "acrn",
    "QNXQVMBSQG": "qnx",
    "TCGTCGTCGTCG": "qemu",
}
_X86 = ("x86_64", "i686")
_DMI_WORDS = (
    ("qemu", "qemu"), ("kvm", "kvm"), ("vmware", "vmware"), ("virtualbox", "virtualbox"), ("firecracker", "kvm"),
    ("microsoft corporation virtual", "hyper-v"), ("amazon ec2", "kvm"), ("google compute engine", "kvm"),
    ("xen", "xen"), ("openstack", "kvm"), ("apple virtualization", "apple"), ("parallels", "parallels"),
)  # fmt: skip
_CGROUP_WORDS = (
    ("kubepods", "kubernetes"),
    ("/docker", "docker"),
    ("libpod", "podman"),
    ("/lxc", "lxc"),
    ("containerd", "containerd"),
)


def read_hypervisor(tree: Sysroot, notes: Notes, *, arch: str, cpuid: CpuId | None, product: str) -> str:
    """Name of the hypervisor, "unknown" if there is one that does not say, "" on bare metal."""
    if cpuid is not None and cpuid.hypervisor:
        notes.found("hypervisor", "CPUID leaf 0x40000000")
        return _SIGNATURES.get(cpuid.hypervisor, cpuid.hypervisor)
    if kind := tree.read("/sys/hypervisor/type"):
        notes.found("hypervisor", "/sys/hypervisor/type")
        return kind
    if compatible := tree.read("/proc/device-tree/hypervisor/compatible"):
        notes.found("hypervisor", "/proc/device-tree/hypervisor/compatible")
        return compatible.split("\0")[0]
    lowered = product.lower()
    for word, name in _DMI_WORDS:
        if word in lowered and "metal" not in lowered:
            notes.found("hypervisor", "firmware's product name")
            return name
    if cpuid is None and arch in _X86 and " hypervisor " in f"{tree.read(CPUINFO) or ''} ":
        notes.found("hypervisor", f"{CPUINFO} flags")
        return "unknown"
    return ""


def read_container(tree: Sysroot, notes: Notes) -> str:
    """Kind of container: "kubernetes", "podman", "docker", "lxc" …, or ""."""
    groups = tree.read("/proc/self/cgroup") or ""
    marks = (
        ("/var/run/secrets/kubernetes.io", "kubernetes"),
        ("/run/.containerenv", "podman"),
        ("/.dockerenv", "docker"),
    )
    for path, name in marks:
        if tree.exists(path):
            notes.found("container", path)
            return name
    if named := tree.read("/run/systemd/container"):
        notes.found("container", "/run/systemd/container")
        return named
    for word, name in _CGROUP_WORDS:
        if word in groups:
            notes.found("container", "/proc/self/cgroup")
            return name
    return ""


def read_emulator(tree: Sysroot, notes: Notes, *, arch: str, hypervisor: str) -> str:
    """Name of the emulator, "qemu", if the CPU's instructions are translated and that can be told, else ""."""
    if hypervisor == "qemu":
        notes.found("emulated_by", "CPUID leaf 0x40000000")
        return "qemu"
    if tree.link_name("/proc/thread-self/exe").startswith("qemu-"):
        notes.found("emulated_by", "/proc/thread-self/exe")
        return "qemu"
    text = tree.read(CPUINFO) or ""
    shows = "x86" if "\nflags\t" in text else "arm" if "CPU implementer" in text else ""
    expected = {"x86_64": "x86", "i686": "x86", "aarch64": "arm", "armv7l": "arm", "armv6l": "arm"}.get(arch, "")
    if shows and expected and shows != expected:
        notes.found("emulated_by", f"{CPUINFO} is of another architecture")
        return "qemu"
    return ""
