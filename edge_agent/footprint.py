# SPDX-License-Identifier: Apache-2.0
"""Keeping a device's process small: what glibc's allocator can be told, and how large the process is.

Everything here is a hint. Where the C library is another one it does nothing.

Source: mallopt(3) (M_ARENA_MAX is -8 in glibc's malloc.h; an arena reserves up to 64 MiB of address space),
malloc_trim(3), proc(5) on /proc/self/statm.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

M_ARENA_MAX = -8
ARENAS = 2
"""One for the event loop and one for the threads that load, hash and run."""


def limit_arenas(arenas: int = ARENAS) -> bool:
    """Let all threads share that many heaps; call it before they start. Returns True if the C library agreed."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt is not None and mallopt(M_ARENA_MAX, arenas))


def give_back_memory() -> bool:
    """Return free heap pages to the system. Returns True if there were any."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return bool(trim is not None and trim(0))


def resident_bytes() -> int:
    """Resident memory of this process; 0 if that cannot be told."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
