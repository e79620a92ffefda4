# SPDX-License-Identifier: Apache-2.0
"""One child process: started in its own process group, its output in a log file, its end told with a reason.

Which programs make up a mesh is not known here. Children die with this process (see `launch`), also when it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from dovetail.errors import DeadlineError, UnavailableError
from dovetail.mesh import launch

_log = logging.getLogger(__name__)

MAX_LOG_BYTES = 16 << 20
"""A log file larger than this is set aside (one generation) when its process starts again."""

TAIL_BYTES = 4096
"""How much of the end of a log an error shows."""

_POLL_S = 0.05  # between questions to a child that is starting


class ChildProcess:
    """A running program. Made by `start_process`; belongs to its event loop.

    Attributes:
        name: For logs and errors, such as "compiler".
        log: File with its output.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process
        self._buried = False

    @property
    def pid(self) -> int:
        """Process id, also of its group."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """False once it ended."""
        return self._process.returncode is None

    async def wait(self) -> int:
        """Its exit status; minus the signal's number if one ended it."""
        return await self._process.wait()

    def failure(self) -> UnavailableError:
        """The error that tells how it ended, with the end of its log."""
        status = self._process.returncode
        how = "is running" if status is None else f"ended with status {status}"
        if status is not None and status < 0:
            how = f"was ended by {signal.Signals(-status).name}"
        return UnavailableError(f"{self.name} {how}; the end of {self.log}:\n{log_tail(self.log)}")

    async def wait_until(self, ready: Callable[[], Awaitable[bool]], *, timeout_s: float) -> None:
        """Ask again and again until it is ready.

        Raises:
            UnavailableError: It ended instead.
            DeadlineError: It was not ready in time.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        while self.running:
            if await ready():
                return
            if asyncio.get_running_loop().time() > deadline:
                raise DeadlineError(
                    f"{self.name} was not ready within {timeout_s:.0f} s; the end of {self.log}:\n{log_tail(self.log)}"
                )
            await asyncio.sleep(_POLL_S)
        raise self.failure()

    async def stop(self, *, grace_s: float = 10.0) -> None:
        """Ask it to end, then kill what is left of its group; returns when it is gone. Calling it again is harmless."""
        if self.running:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._process.wait()
        await self.kill()

    async def kill(self) -> None:
        """Kill it and its whole group at once, as a crash would. Calling it again is harmless."""
        if self._buried:
            return  # its number may belong to another process by now
        self._buried = True
        self._signal(signal.SIGKILL, group=True)
        await self._process.wait()
        _log.info("process.ended name=%s pid=%d status=%s", self.name, self.pid, self._process.returncode)

    def _signal(self, number: signal.Signals, *, group: bool = False) -> None:
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(self.pid, number)  # the group outlives its leader while anything is in it
            else:
                self._process.send_signal(number)


async def start_process(
    name: str, program: Sequence[str], *, log: Path, environ: Mapping[str, str], working_dir: Path
) -> ChildProcess:
    """Start a program as a child in its own session, with no input and all output in the log file.

    Call it in a thread that lives as long as the child should: Linux ties the child to the thread that started it.

    Raises:
        UnavailableError: It cannot be started or its log cannot be written.
    """
    try:
        with await asyncio.to_thread(_open_log, log) as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *program,
                stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
                env=dict(environ), cwd=working_dir, start_new_session=True,
            )  # fmt: skip
    except OSError as exc:
        raise UnavailableError(f"{name} cannot be started: {exc}") from exc
    _log.info("process.started name=%s pid=%d", name, process.pid)
    return ChildProcess(name, process, log)


def _open_log(log: Path) -> BinaryIO:
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    return log.open("ab")


def log_tail(path: Path) -> str:
    """The last lines of a log, at most TAIL_BYTES."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return "(no output)"
    return text.strip() or "(no output)"
