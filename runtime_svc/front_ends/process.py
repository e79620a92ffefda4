# SPDX-License-Identifier: Apache-2.0
"""One process of a front end as the main process sees it: started, waited for, ended. It is never started again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import runtime_svc
from dovetail.errors import UnavailableError
from runtime_svc.front_ends.link import FrontEndLink
from runtime_svc.front_ends.settings import FrontEndSettings
from runtime_svc.protocol.inference import InferenceCore

START_TIMEOUT_S = 60.0
"""A safety net: an interpreter that imports gRPC takes half a second."""

_LAST_WAIT_S = 5.0  # beyond the grace that was given


class FrontEndProcess:
    """A running process; made by `start`.

    Attributes:
        link: To it.
    """

    def __init__(self, process: asyncio.subprocess.Process, link: FrontEndLink) -> None:
        self._process = process
        self.link = link

    @staticmethod
    async def start(settings: FrontEndSettings, core: InferenceCore) -> FrontEndProcess:
        """Start a process and wait until it serves.

        Args:
            settings: For it; the descriptor is filled in.
            core: Answers its calls.

        Raises:
            UnavailableError: It does not serve.
        """
        try:
            ours, process = await _spawn(settings)
        except OSError as exc:
            raise UnavailableError(f"a front end cannot be started: {exc.strerror}") from exc
        started = FrontEndProcess(process, FrontEndLink(ours, core))
        try:
            await started._until_ready()
        except BaseException:
            await started.end()
            raise
        return started

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait until it has ended or can do nothing more; its exit status, negative if a signal ended it."""
        await self.link.lost.wait()
        return await self.end()

    async def stop(self, grace_s: float) -> None:
        """Have it finish its calls within that time, and end."""
        self.link.stop(grace_s)
        try:
            async with asyncio.timeout(grace_s + _LAST_WAIT_S):
                await self._process.wait()
        except TimeoutError:
            pass
        await self.end()

    async def end(self) -> int:
        """Cancel its calls and end it now; its exit status."""
        await self.link.close()
        try:
            async with asyncio.timeout(_LAST_WAIT_S):  # it ends by itself when the link is closed
                return await self._process.wait()
        except TimeoutError:
            if self._process.returncode is None:
                self._process.kill()
            return await self._process.wait()

    async def _until_ready(self) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                problem = await asyncio.shield(self.link.ready)
        except TimeoutError:
            raise UnavailableError(f"a front end did not start within {START_TIMEOUT_S:.0f} s") from None
        except asyncio.CancelledError:
            if not self.link.ready.cancelled():
                raise
            raise UnavailableError("a front end ended while it was started: its log lines say why") from None
        if problem:
            raise UnavailableError(f"a front end cannot serve: {problem}")


async def _spawn(settings: FrontEndSettings) -> tuple[socket.socket, asyncio.subprocess.Process]:
    ours, theirs = socket.socketpair()
    with contextlib.ExitStack() as on_failure, theirs:
        on_failure.callback(ours.close)
        told = replace(settings, descriptor=theirs.fileno())
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "runtime_svc.front_ends", told.to_json(),
            stdin=asyncio.subprocess.DEVNULL, env=_environment(os.environ), pass_fds=[theirs.fileno()],
            start_new_session=True,
        )  # fmt: skip
        on_failure.pop_all()
    return ours, process


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """All but our own variables, which may hold passwords: a front end is told what it needs."""
    passed = {name: value for name, value in environ.items() if not name.startswith("DOVETAIL_")}
    here = str(Path(runtime_svc.__file__).resolve().parents[1])
    passed["PYTHONPATH"] = os.pathsep.join(part for part in (here, passed.get("PYTHONPATH", "")) if part)
    return passed
