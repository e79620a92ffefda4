# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of a process that may be anybody's child.

Source: Linux, proc(5): /proc/<pid>/stat, the field after the name, which is in brackets and may hold anything.
"""

from __future__ import annotations

from pathlib import Path

STOPPED, ZOMBIE, DEAD, GONE = "T", "Z", "X", ""


def state_of(pid: int) -> str:
    """One letter, such as STOPPED; GONE if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except (OSError, IndexError):  # it may go while it is read
        return GONE


def alive(pid: int) -> bool:
    """False also for a zombie: nobody here may be waiting for a grandchild."""
    return state_of(pid) not in (ZOMBIE, DEAD, GONE)
