# SPDX-License-Identifier: Apache-2.0
"""How much of the processor a virtual machine's host gave to others while something was measured.

A guest sees no other cause for it, and its figures jump by as much; so what is measured says how much it was.

Source: Linux, proc(5): /proc/stat, field `steal` of `cpu`; all fields are in ticks.
"""

from __future__ import annotations

from pathlib import Path

_STAT = Path("/proc/stat")
_STEAL, _GUEST = 7, 8  # fields from there on are counted in the first two, too


class Stolen:
    """Counts from its making on."""

    def __init__(self) -> None:
        self._stolen, self._all = _ticks()

    def percent(self) -> float:
        """Share of all cores' time since then; 0 where the system does not say."""
        stolen, all_ = _ticks()
        return 100 * (stolen - self._stolen) / max(all_ - self._all, 1)


def _ticks() -> tuple[int, int]:
    if not _STAT.exists():
        return 0, 0
    fields = [int(field) for field in _STAT.read_text().splitlines()[0].split()[1:]]
    return sum(fields[_STEAL:_GUEST]), sum(fields[:_GUEST])
