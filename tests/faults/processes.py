# SPDX-License-Identifier: Apache-2.0
"""Real processes that a test may kill, stop and wake at any moment, from the test's side of the zygote."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.fakes.process_state import STOPPED, state_of

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
END_S = 20.0
_SOURCE = Path(__file__).resolve().parents[2]


@dataclass
class Process:
    """One forked process; `ended` gives its exit code (negative: the signal that ended it)."""

    pid: int
    program: str
    log: Path
    ended: asyncio.Future[int] = field(repr=False)

    @property
    def alive(self) -> bool:
        return not self.ended.done()

    @property
    def frozen(self) -> bool:
        """True while SIGSTOP holds it."""
        return state_of(self.pid) == STOPPED

    def send(self, number: int) -> None:
        """Send a signal to this process only, not to its children."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def kill(self) -> None:
        """SIGKILL it and wait until it is gone."""
        self.send(signal.SIGKILL)
        await self.wait()

    async def stop(self) -> int:
        """SIGTERM it and wait until it is gone."""
        self.send(signal.SIGTERM)
        return await self.wait()

    async def wait(self) -> int:
        return await asyncio.wait_for(asyncio.shield(self.ended), END_S)

    def descendants(self) -> list[int]:
        """Processes below it."""
        found: list[int] = []
        unread = [self.pid]
        while unread:
            with contextlib.suppress(OSError):
                pid = unread.pop()
                text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
                children = [int(child) for child in text.split()]
                found += children
                unread += children
        return found


class Zygote:
    """Starts processes; all that run are killed when it closes. Belongs to one event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._ids = itertools.count()
        self._starting: dict[int, asyncio.Future[int]] = {}
        self._ended: dict[int, asyncio.Future[int]] = {}
        self._reading = asyncio.create_task(self._read())

    async def start(self, program: str, environ: Mapping[str, str], log: Path, *, argv: Sequence[str] = ()) -> Process:
        """Start "worker", "service", or with "exec" any program."""
        order = next(self._ids)
        started = self._starting[order] = asyncio.get_running_loop().create_future()
        line = json.dumps(
            {"id": order, "program": program, "environ": dict(environ), "log": str(log), "argv": list(argv)}
        )
        self._writer.write(line.encode() + b"\n")
        pid = await asyncio.wait_for(started, END_S)
        return Process(pid, program, log, self._ended[pid])

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        await self._reading

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while line := await self._reader.readline():
                said = json.loads(line)
                if "pid" in said:
                    self._ended[said["pid"]] = loop.create_future()
                    self._starting.pop(said["id"]).set_result(said["pid"])
                else:
                    self._ended[said["ended"]].set_result(said["status"])
        for started in self._starting.values():
            started.set_exception(RuntimeError("the zygote ended"))


@contextmanager
def zygote_process() -> Iterator[Path]:
    """A zygote for the block; the path of its socket."""
    with tempfile.TemporaryDirectory(prefix="dt-") as folder:
        path = Path(folder) / "zygote"
        running = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote", str(path)],
            stdin=subprocess.DEVNULL,
            cwd=_SOURCE,
            env={name: value for name, value in os.environ.items() if not name.startswith("DOVETAIL_")},
            preexec_fn=_die_with_parent,
        )
        try:
            deadline_s = time.monotonic() + END_S
            while not path.exists():
                assert running.poll() is None, "the zygote did not start"
                assert time.monotonic() < deadline_s, "the zygote did not start in time"
                time.sleep(0.01)
            yield path
        finally:
            running.kill()
            running.wait()


@asynccontextmanager
async def zygote(path: Path) -> AsyncIterator[Zygote]:
    """A connection to the zygote at a socket; what it starts ends with the block."""
    made = Zygote(*await asyncio.open_unix_connection(path))
    try:
        yield made
    finally:
        await made.close()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
