# SPDX-License-Identifier: Apache-2.0
"""A machine's /proc and /sys as a folder of small files, for tests of the probe."""

from pathlib import Path

from dovetail.probe.sysroot import Sysroot


def sysroot_of(root: Path, files: dict[str, str]) -> Sysroot:
    """The files below `root`, by their path on the machine."""
    for name, text in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Sysroot(root)
