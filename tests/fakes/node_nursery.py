# SPDX-License-Identifier: Apache-2.0
"""Processes that do a node's work and may be killed at any moment, by the hundred.

A Python process with gRPC and an engine in it takes half a second to start. So one is started, imports everything, and
forks a child for each order; a child is a process like any other, with nothing in it yet that a fork would break.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
DEADLINE_S = 120.0


class Child:
    """One child that runs.

    Attributes:
        pid: Its process id.
    """

    def __init__(self, pid: int, nursery: asyncio.subprocess.Process) -> None:
        self.pid = pid
        self._nursery = nursery
        self._over = False

    def kill(self) -> None:
        """End it as a power switch does; harmless if it has ended."""
        if not self._over:
            os.kill(self.pid, signal.SIGKILL)  # the nursery has not reaped it, so the id is still its own

    async def code(self) -> int:
        """Its exit code, or minus the signal that ended it."""
        async with asyncio.timeout(DEADLINE_S):
            line = await _line(self._nursery)
        self._over = True
        await _tell(self._nursery, {"reap": self.pid})
        async with asyncio.timeout(DEADLINE_S):
            return int(await _line(self._nursery)) if line == "over" else int(line)


class Nursery:
    """Starts children; one at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def start(self, work: str, **arguments: object) -> Child:
        """Begin one of the works in `WORKS`."""
        await _tell(self._process, {"work": work, "arguments": arguments})
        return Child(int(await _line(self._process)), self._process)


@asynccontextmanager
async def nursery() -> AsyncIterator[Nursery]:
    """A nursery while the block runs; its children die with it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.fakes.node_nursery", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield Nursery(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _tell(process: asyncio.subprocess.Process, message: object) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(message).encode() + b"\n")
    await process.stdin.drain()


async def _line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    line = await process.stdout.readline()
    assert line, "the nursery died"
    return line.decode().strip()


def _serve() -> None:
    """Fork a child for each line of standard input; say its id, that it is over, and, asked for it, how it ended."""
    from tests.fakes.node_works import WORKS

    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _be_child(WORKS[order["work"]], order["arguments"])
        print(pid, flush=True)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        print("over", flush=True)
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _be_child(work: object, arguments: dict[str, object]) -> None:
    assert callable(work)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    code = 1
    try:
        work(**arguments)
        code = 0
    except BaseException as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve()
