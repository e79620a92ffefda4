# SPDX-License-Identifier: Apache-2.0
"""Being told that a child process has ended, without taking its exit status away from whoever waits for that.

Linux has a descriptor for it; elsewhere, or where that call is not allowed, a thread waits and closes a pipe.

Source: pidfd_open(2), Linux 5.3; waitid(2) with WNOWAIT; kqueue(2) with EVFILT_PROC and NOTE_EXIT, macOS and BSD.
"""

from __future__ import annotations

import os
import select
import threading
from typing import Any


def end_descriptor(pid: int) -> int:
    """A descriptor, owned by the caller, that is readable once this child has ended.

    The child stays a zombie, so its number belongs to nobody else until the caller waits for it.
    """
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # not Linux, an old kernel, or a sandbox that refuses the call
        pass
    reading, writing = os.pipe()
    threading.Thread(target=_close_at_end, args=(pid, writing), name=f"end-of-{pid}", daemon=True).start()
    return reading


def _close_at_end(pid: int, writing: int) -> None:
    try:
        if hasattr(os, "waitid"):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        else:
            _wait_for_event(pid, select)
    except OSError:  # it has ended, and somebody has waited for it already
        pass
    finally:
        os.close(writing)


def _wait_for_event(pid: int, kernel: Any) -> None:
    """Wait with `select.kqueue`, which every system without `waitid` in its Python has."""
    queue = kernel.kqueue()
    try:
        event = kernel.kevent(pid, kernel.KQ_FILTER_PROC, kernel.KQ_EV_ADD, kernel.KQ_NOTE_EXIT)
        queue.control([event], 1, None)
    finally:
        queue.close()
