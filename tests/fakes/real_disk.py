# SPDX-License-Identifier: Apache-2.0
"""A real file system in a file, whose power can be cut; and small disks that fill up.

What a file system has not written to its device when the power goes is gone. Its device here is a file, so a copy of
that file is the disk after a power cut: mounting the copy replays the journal as a boot would. Mounting needs root and
loop devices; `missing()` says what this machine lacks.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IMAGE_BYTES = 64 << 20
OPTIONS = "loop,commit=600,noauto_da_alloc"  # nothing reaches the device by itself, and no help for missing fsyncs


def missing(*programs: str) -> str:
    """Why this machine cannot do it; "" if it can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    absent = [name for name in ("mount", "umount", *programs) if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    # A folder of its own: each process that collects tests asks, several at once.
    with tempfile.TemporaryDirectory() as folder:
        probe = subprocess.run(["mount", "-t", "tmpfs", "none", folder], capture_output=True, text=True, check=False)
        if probe.returncode:
            return f"this system does not let us mount: {probe.stderr.strip()}"
        run("umount", "--lazy", folder)  # whatever looks at a new mount for a moment must not make it an error
    return ""


def make_image(path: Path) -> None:
    """An empty ext4 file system."""
    with path.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    run("mkfs.ext4", "-q", "-F", str(path))


@contextmanager
def mounted(image: Path, at: Path) -> Iterator[Path]:
    """The file system of an image, while the block runs."""
    at.mkdir(exist_ok=True)
    run("mount", "-o", OPTIONS, str(image), str(at))
    try:
        yield at
    finally:
        run("umount", str(at))  # not lazily: the device has everything when this returns


@contextmanager
def small_disk(at: Path, size_bytes: int) -> Iterator[Path]:
    """A disk of that size in memory, while the block runs."""
    at.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "none", str(at))
    try:
        yield at
    finally:
        run("umount", "--lazy", str(at))


def copy_sparse(source: Path, target: Path) -> None:
    """Copy an image; holes stay holes."""
    run("cp", "--sparse=always", str(source), str(target))


def run(*argv: str) -> None:
    """Run a command that must work."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
