# SPDX-License-Identifier: Apache-2.0
"""A little memory that a node writes and the process of a Python model reads: which callers of a run have left.

Eight bytes for the run as a whole, then eight for each of its callers. Each holds the number of a run, so a mark that
comes too late, when another run has begun, means nothing.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile

PAGE_BYTES = 64 << 10
MOST_CALLERS = PAGE_BYTES // 8 - 1
"""Callers of a run that can be marked; of more, the model hears only when all are gone."""

_NUMBER = struct.Struct("<Q")


class ControlPage:
    """The node's end; one thread at a time.

    Attributes:
        descriptor: For the process; -1 after `close`.
    """

    def __init__(self) -> None:
        self.descriptor = _new_memory()
        self._page = mmap.mmap(self.descriptor, PAGE_BYTES)

    def mark(self, run: int, caller: int | None = None) -> None:
        """Show that this caller of a run has left, by its place among them; None: that nobody waits for it."""
        place = 0 if caller is None else caller + 1
        if place <= MOST_CALLERS:
            _NUMBER.pack_into(self._page, place * 8, run)

    def close(self) -> None:
        """Give the descriptor back; marks have no effect any more."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class SeenControlPage:
    """The process's end.

    Args:
        descriptor: As the node gave it; closed by this.
    """

    def __init__(self, descriptor: int) -> None:
        self._page = mmap.mmap(descriptor, PAGE_BYTES, prot=mmap.PROT_READ)
        os.close(descriptor)

    def is_marked(self, run: int, caller: int | None = None) -> bool:
        """See `ControlPage.mark`."""
        place = 0 if caller is None else caller + 1
        return place <= MOST_CALLERS and bool(_NUMBER.unpack_from(self._page, place * 8)[0] == run)


def _new_memory() -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("dovetail-control", os.MFD_CLOEXEC)
    else:  # a file without a name
        with tempfile.TemporaryFile(prefix="dovetail-control") as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, PAGE_BYTES)
    return descriptor
