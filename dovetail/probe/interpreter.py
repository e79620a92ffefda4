# SPDX-License-Identifier: Apache-2.0
"""What the running Python was built for: architecture and C library, which decide which wheels and engines load.

Not the kernel's view: a 32-bit Python on an aarch64 kernel cannot load 64-bit libraries, so the ELF header of the
interpreter decides and `uname` is only the fallback.

Source: ELF header layout and machine numbers, System V ABI "ELF Header" and Linux uapi `linux/elf-em.h`.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from dovetail.probe.sysroot import Notes, Sysroot

_MACHINES = {
    (3, 1): "i686",
    (62, 2): "x86_64",
    (183, 2): "aarch64",
    (243, 2): "riscv64",
    (21, 2): "ppc64le",
    (22, 2): "s390x",
    (258, 2): "loongarch64",
}
_ARM32 = 40
_MUSL_VERSION = re.compile(r"^Version (\d+\.\d+)", re.MULTILINE)
_MUSL_TIMEOUT_S = 5.0


def elf_arch(header: bytes, kernel_machine: str) -> str | None:
    """Architecture of an ELF file from its first 20 bytes, or None if it is not one.

    32-bit ARM does not say in its header which ARM: "armv6l" if the kernel is one, else "armv7l".
    """
    if len(header) < 20 or header[:4] != b"\x7fELF":
        return None
    order = "big" if header[5] == 2 else "little"
    machine = int.from_bytes(header[18:20], order)  # type: ignore[arg-type]
    if machine == _ARM32:
        return "armv6l" if kernel_machine == "armv6l" else "armv7l"
    return _MACHINES.get((machine, header[4]))


def read_arch(notes: Notes) -> str:
    """Architecture of this process, "x86_64", "aarch64", "armv7l" …"""
    try:
        with Path(sys.executable).open("rb") as file:
            arch = elf_arch(file.read(20), platform.machine())
    except OSError:
        arch = None
    if arch:
        notes.found("arch", "ELF header of the interpreter")
        return arch
    notes.found("arch", "uname")
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine) or "unknown"


def read_libc(tree: Sysroot, notes: Notes) -> str:
    """C library and version, "glibc-2.36" or "musl-1.2"; "" if neither is found."""
    try:
        text = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        text = ""
    if text:
        notes.found("libc", "confstr(CS_GNU_LIBC_VERSION)")
        return text.replace(" ", "-", 1)
    for name in tree.names("/lib"):
        if name.startswith("ld-musl-"):
            notes.found("libc", f"/lib/{name}")
            return _musl_version(tree.path(f"/lib/{name}"))
    notes.missing("libc", "neither glibc's confstr nor /lib/ld-musl-* is there")
    return ""


def _musl_version(loader: Path) -> str:
    """The loader of musl prints its version to stderr when it is run without arguments."""
    try:
        shown = subprocess.run(
            (str(loader),), capture_output=True, text=True, timeout=_MUSL_TIMEOUT_S, check=False
        ).stderr
    except (OSError, subprocess.SubprocessError):
        return "musl"
    match = _MUSL_VERSION.search(shown)
    return f"musl-{match[1]}" if match else "musl"
