# SPDX-License-Identifier: Apache-2.0
"""How Python is started on an emulated CPU: the command and the environment. Starting is the caller's business.

For the worker's own architecture it is this very Python under the emulator. For ARM64 it is the one of a root
directory (a Debian or container file system with python3, numpy and onnxruntime inside), reached through QEMU's `-L`:
paths that exist below that prefix are taken from there, all others from the host. That needs no rights, unlike chroot.

The prefix is not the root itself but a directory of links to it, with a /proc/cpuinfo of its own. QEMU's user mode
shows programs the host's file, and ONNX Runtime's CPU detection dies of an x86 one on ARM (seen with 1.31.1). Its
features do not matter (the detection asks getauxval), the implementer and part are those of the emulated CPU.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compiler_svc.worker.emulation.catalogue import EmulatorCpu
from dovetail.errors import UnsupportedError

_PACKAGES = ("dovetail", "compiler_svc")
_SOURCE = Path(__file__).resolve().parents[3]
_LINKED = ("bin", "etc", "lib", "lib64", "sbin", "usr")
"""Folders of the root that are taken from there; /tmp, /home and the like stay the host's, where our files are."""

_PYTHONS = ("usr/local/bin/python3", "usr/bin/python3")


@dataclass(frozen=True, slots=True)
class EmulatedPython:
    """How to start it.

    Attributes:
        command: Program and arguments before Python's own arguments.
        environ: All of its environment.
    """

    command: tuple[str, ...]
    environ: Mapping[str, str]


def find_program(cpu: EmulatorCpu) -> str:
    """Path of the emulator.

    Raises:
        UnsupportedError: It is not on PATH.
    """
    program = shutil.which(cpu.program)
    if program is None:
        raise UnsupportedError(f"{cpu.name} needs {cpu.program} on PATH: apt install qemu-user-static")
    return program


def prepare(cpu: EmulatorCpu, program: str, root: str, scratch: Path, *, threads: int = 1) -> EmulatedPython:
    """Make ready to start Python on that CPU. Blocks for a few small files.

    Args:
        cpu: Which one.
        program: Path of the emulator.
        root: Root directory with another architecture's Python; "" takes the Python that runs this.
        scratch: Existing directory of the caller's; it must stay while the emulated Python runs.
        threads: For libraries that read it from the environment.

    Raises:
        UnsupportedError: The root has no Python.
    """
    environ = _environment(_source(scratch), scratch, threads)
    if not root:
        return EmulatedPython((program, "-cpu", cpu.cpu, sys.executable, "-P"), environ)
    guest = next((name for name in _PYTHONS if (Path(root) / name).is_file()), None)
    if guest is None:
        raise UnsupportedError(f"{cpu.name} needs {' or '.join(_PYTHONS)} below DOVETAIL_ARM64_ROOT ({root})")
    prefix = _prefix(cpu, Path(root), scratch)
    interpreter = str((Path(root) / guest).resolve())
    # -0: Python finds its library by the name it is called by, which must be a path of the guest.
    return EmulatedPython((program, "-cpu", cpu.cpu, "-L", str(prefix), "-0", f"/{guest}", interpreter, "-P"), environ)


def _environment(source: Path, scratch: Path, threads: int) -> dict[str, str]:
    return {
        "PATH": os.defpath,
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(source),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",
        "ORT_DISABLE_TELEMETRY": "1",
    }


def _source(scratch: Path) -> Path:
    """A folder with our packages and nothing else: beside them may lie libraries of the wrong architecture."""
    source = scratch / "source"
    source.mkdir(exist_ok=True)
    for package in _PACKAGES:
        _link(source / package, _SOURCE / package)
    return source


def _prefix(cpu: EmulatorCpu, root: Path, scratch: Path) -> Path:
    prefix = scratch / "prefix"
    (prefix / "proc").mkdir(parents=True, exist_ok=True)
    for name in _LINKED:
        if (root / name).exists():
            _link(prefix / name, (root / name).resolve())
    processors = (_processor(cpu, number) for number in range(os.cpu_count() or 1))
    (prefix / "proc" / "cpuinfo").write_text("".join(processors), encoding="ascii")
    return prefix


def _processor(cpu: EmulatorCpu, number: int) -> str:
    """One block of /proc/cpuinfo. Source: Linux arch/arm64/kernel/cpuinfo.c."""
    return (
        f"processor\t: {number}\nBogoMIPS\t: 100.00\nFeatures\t: fp asimd\nCPU implementer\t: {cpu.implementer}\n"
        f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {cpu.part}\nCPU revision\t: 0\n\n"
    )


def _link(link: Path, to: Path) -> None:
    if not link.is_symlink():
        link.symlink_to(to, target_is_directory=True)
