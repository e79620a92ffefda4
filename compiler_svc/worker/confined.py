# SPDX-License-Identifier: Apache-2.0
"""Starts a program with few rights: `python -m compiler_svc.worker.confined DIRECTORY PROGRAM ARGUMENT…`

Three processes where the kernel has process namespaces: this one, which waits and ends as the program ended; the first
of the namespace, which watches over it and whose end is the end of everything in it, however it forked and hid; and
the program. Where there are none, the program takes this process' place.

What it may use is in the directory's `spec.json`; which rights it lost is in its environment, under CONFINED.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from compiler_svc.worker import confinement

CONFINED = "DOVETAIL_CONFINED"
"""Environment variable with the rights that are gone, separated by commas."""

HIDDEN = "DOVETAIL_HIDDEN"
"""Environment variable with absolute paths of files that the program must not see, separated by commas."""

EXIT_PROCESSES = 97
"""The program had more processes than it may have."""

EXIT_MEMORY = 98
"""Its processes used more memory together than one may."""

_LOOK_S = 0.05
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def main(directory: Path, command: Sequence[str]) -> NoReturn:
    """Confine, start, watch; ends as the command ends, by its status or signal."""
    limits = json.loads((directory / "spec.json").read_text(encoding="utf-8"))["limits"]
    gone = set(confinement.isolate())
    confinement.die_with_parent()  # after new namespaces, which undo it
    if "mounts" in gone and confinement.make_read_only_but(directory):
        gone.add("writing")
    _hide_secrets(mounts="mounts" in gone)
    if "processes" not in gone:
        _become(command, limits, gone)
    reading, writing = os.pipe()
    first = os.fork()
    if first == 0:
        os.close(reading)
        _watch_over(command, limits, gone, writing)
    os.close(writing)
    os.waitpid(first, 0)
    with os.fdopen(reading, "rb") as pipe:
        status = pipe.read()
    _end_like(int(status) if status else signal.SIGKILL)  # nothing told: the kernel killed it


def _hide_secrets(*, mounts: bool) -> None:
    for name in os.environ.pop(HIDDEN, "").split(","):
        if mounts and name and os.path.exists(name):
            confinement.hide(Path(name))


def _watch_over(command: Sequence[str], limits: Mapping[str, Any], gone: set[str], channel: int) -> NoReturn:
    """Be the first process of the namespace: start the program, reap, look at its numbers, and tell how it ended."""
    confinement.die_with_parent()
    seeing = confinement.mount_own_proc()
    if seeing and int(limits["processes"]):
        confinement.limit_processes(int(limits["processes"]))
    confinement.watch_first()
    program = os.fork()
    if program == 0:
        os.close(channel)
        _become(command, limits, gone)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # so that it can be waited for with a time limit
    status: int | None = None
    while status is None:
        status = _reaped(program)
        if status is None and seeing:
            status = _over_limits(limits)
        if status is None:
            signal.sigtimedwait({signal.SIGCHLD}, _LOOK_S)
    os.write(channel, str(status).encode())
    os._exit(0)  # and the kernel kills what is left


def _become(command: Sequence[str], limits: Mapping[str, Any], gone: set[str]) -> NoReturn:
    """Give up the rest and turn into the program."""
    confinement.die_with_parent()
    confinement.apply_limits(limits)
    if confinement.give_up_privileges():
        gone.add("privileges")
    os.execve(command[0], list(command), {**os.environ, CONFINED: ",".join(sorted(gone))})  # noqa: S606 (no shell)


def _reaped(program: int) -> int | None:
    """Wait status of the program if it ended; ends of orphans are taken along."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return int(signal.SIGKILL)
        if pid == program:
            return status
        if pid == 0:
            return None


def _over_limits(limits: Mapping[str, Any]) -> int | None:
    """Wait status that says which limit all processes together are over, or None."""
    folders = [entry for entry in os.listdir("/proc") if entry.isdigit()]
    most = int(limits["processes"])
    if most and len(folders) - 1 > most:
        print(f"more than {most} processes", file=sys.stderr, flush=True)
        return EXIT_PROCESSES << 8
    resident = 0
    for folder in folders:
        with contextlib.suppress(OSError, ValueError, IndexError):
            resident += int(Path("/proc", folder, "statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES
    if resident > int(limits["memory_bytes"]):
        print(f"more than {limits['memory_bytes']} bytes in {len(folders) - 1} processes", file=sys.stderr, flush=True)
        return EXIT_MEMORY << 8
    return None


def _end_like(status: int) -> NoReturn:
    """End with that wait status."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
