# SPDX-License-Identifier: Apache-2.0
"""What the process of a Python model does before anything else: it ties its life to the node's, and takes its limits.

The tie is a pipe whose writing end only the node holds: when the node ends, however that comes, the kernel sends this
process SIGKILL. So it works also while the model's code computes without giving Python a turn, and, unlike a
parent-death signal, does not depend on which thread of the node started the process.

Source: fcntl(2), F_SETOWN, F_SETSIG and O_ASYNC (on pipes since Linux 2.6); setrlimit(2); proc(5), oom_score_adj.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import signal
import sys
import threading
from pathlib import Path

_OOM_SCORE = "500"  # of -1000 to 1000: when memory runs out, a model's process goes before the node


def die_with_node(lifeline: int) -> None:
    """Have this process end when the other end of that pipe is closed; ends it at once if that has happened."""
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    else:
        threading.Thread(target=_end_at_hangup, args=(lifeline,), name="lifeline", daemon=True).start()
    if select.select([lifeline], [], [], 0)[0]:  # nobody ever writes: readable means closed
        os._exit(1)


def take_limits(*, memory_bytes: int, open_files: int) -> None:
    """Limit this process and what it starts.

    Args:
        memory_bytes: Of address space; 0: no limit.
        open_files: Most of them.
    """
    wanted = {resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: open_files}
    if memory_bytes:
        wanted[resource.RLIMIT_AS] = memory_bytes
    for kind, most in wanted.items():
        _, ceiling = resource.getrlimit(kind)
        allowed = most if ceiling == resource.RLIM_INFINITY else min(most, ceiling)
        resource.setrlimit(kind, (allowed, allowed))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")


def speak_plainly() -> None:
    """Have what is printed leave at once, and Ctrl-C be the node's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]


def _end_at_hangup(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(1)
