# SPDX-License-Identifier: Apache-2.0
"""Reading small system files below a root, and remembering where each fact came from.

Everything that a probe reads goes through `Sysroot`, so a recorded tree of another machine can stand in for "/".
A file that is missing, unreadable or too large reads as None: what to make of that is the probe's business.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

_READ_LIMIT_BYTES = 4 << 20
"""More than the longest file read here: /proc/cpuinfo of 1,024 x86 cores is about 1.6 MiB."""


_DIGITS = 19
_LIMIT = 1 << 63
"""The kernel's own numbers fit into 64 bits; what does not is nonsense and would not fit into a document."""


@dataclass(frozen=True, slots=True)
class Sysroot:
    """A file system tree with /proc, /sys, /etc and /dev below `root`."""

    root: Path = Path("/")

    def path(self, name: str) -> Path:
        """Where `/proc/cpuinfo` and the like really are."""
        return self.root / name.lstrip("/")

    def read(self, name: str, *, limit_bytes: int = _READ_LIMIT_BYTES) -> str | None:
        """Text of a file without trailing NUL and white space, or None if it cannot be read."""
        try:
            with self.path(name).open("rb") as file:
                data = file.read(limit_bytes)
        except OSError:
            return None
        return data.decode(errors="replace").rstrip("\0 \t\r\n")

    def read_int(self, name: str) -> int | None:
        """A decimal or 0x number in a file, or None."""
        text = self.read(name)
        try:
            value = None if text is None or len(text) > _DIGITS + 2 else int(text, 0)
        except ValueError:
            return None
        return value if value is None or abs(value) < _LIMIT else None

    def names(self, name: str) -> tuple[str, ...]:
        """Entries of a directory in order; empty if there is none."""
        try:
            return tuple(sorted(entry.name for entry in self.path(name).iterdir()))
        except OSError:
            return ()

    def exists(self, name: str) -> bool:
        """True if the path is there and may be looked at."""
        try:
            return self.path(name).exists()
        except OSError:
            return False

    def link_name(self, name: str) -> str:
        """Last part of what a symbolic link points to ("i915" for .../device/driver), or ""."""
        try:
            return self.path(name).readlink().name
        except OSError:
            return ""


@dataclass(slots=True)
class Notes:
    """Where facts were read and why others are missing; filled by the probes of one measurement.

    Not thread safe: one measurement owns it.
    """

    sources: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def found(self, fact: str, where: str) -> None:
        """Remember that `fact` was read from `where`."""
        self.sources[fact] = where

    def missing(self, probe: str, reason: str) -> None:
        """Remember why `probe` found nothing, or less than it was told."""
        self.absent[probe] = reason[:300]


def parse_count(text: str) -> int:
    """A decimal number that fits into 63 bits, or 0."""
    return value if text.isascii() and text.isdecimal() and (value := int(text[: _DIGITS + 1])) < _LIMIT else 0


def parse_cpu_list(text: str) -> frozenset[int]:
    """CPU numbers of the kernel's list form: `parse_cpu_list("0-2,8") == {0, 1, 2, 8}`; bad parts are left out.

    Source: Linux, Documentation/admin-guide/cputopology.rst and cpuset(7), "List format".
    """
    cpus: set[int] = set()
    for part in text.replace("\n", ",").split(","):
        first, _, last = part.strip().partition("-")
        try:
            low, high = int(first), int(last or first)
        except ValueError:
            continue
        if 0 <= low <= high < 65536:
            cpus.update(range(low, high + 1))
    return frozenset(cpus)
