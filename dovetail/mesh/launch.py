# SPDX-License-Identifier: Apache-2.0
"""First program of every child of the mesh: ties its life to its parent's, then becomes the real program.

It is run as a file by a bare interpreter (`python -I -S launch.py PARENT_PID PROGRAM ARGUMENTS…`), so it imports the
standard library only. Doing this between fork and exec of the parent instead would run Python code in a copy of a
process that has gRPC's threads, which can deadlock.

Source: prctl(2), PR_SET_PDEATHSIG: the signal is sent when the parent *thread* ends and is kept across execve.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h


def main(arguments: list[str]) -> None:
    """Become the program; does not return."""
    parent, program = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above could tie us to it
            sys.exit(1)
    try:
        os.execv(program[0], program)  # noqa: S606 - an argument list made by our own parent; no shell
    except OSError as exc:
        sys.exit(f"{program[0]} cannot be started: {exc.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
