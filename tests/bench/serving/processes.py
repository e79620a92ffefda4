# SPDX-License-Identifier: Apache-2.0
"""CPU time of a process and of all that it started, from /proc.

Source: proc(5), the fields of /proc/<pid>/stat; a tick is 10 ms on every common Linux.
"""

from __future__ import annotations

import os
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(root: int) -> float:
    """User and system time of the process and its living descendants, and of children that they outlived; 0 for 0."""
    if not root:
        return 0.0
    fields = _all_fields()
    family, added = {root}, True
    while added:
        more = {pid for pid, values in fields.items() if int(values[1]) in family} - family
        family |= more
        added = bool(more)
    return sum(sum(map(int, fields[pid][11:15])) for pid in family if pid in fields) / _TICKS_PER_S


def own_cpu_s(pid: int) -> float:
    """User and system time of one process, without what it started."""
    return sum(map(int, _all_fields()[pid][11:13])) / _TICKS_PER_S


def _all_fields() -> dict[int, list[str]]:
    """Of every process: the fields from its state on (state, parent, …; times are the twelfth to the fifteenth)."""
    found: dict[int, list[str]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                text = (path / "stat").read_text()
            except OSError:  # it has ended meanwhile
                continue
            found[int(path.name)] = text[text.rindex(")") + 2 :].split()
    return found
