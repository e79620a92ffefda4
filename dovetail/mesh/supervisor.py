# SPDX-License-Identifier: Apache-2.0
"""Keeps a set of programs: starts them in order, waits until each is healthy, stops them in reverse order.

A program here is a `Part`: how to start it and how to tell that it is ready. Which parts a mesh has is in `parts`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dovetail.errors import DovetailError, NotFoundError
from dovetail.mesh.process import ChildProcess, start_process
from dovetail.rpc.channel import open_channel

_log = logging.getLogger(__name__)

START_TIMEOUT_S = 60.0
"""Longest wait for a part; importing an inference library on a slow board takes ten seconds."""

_FIRST_PAUSE_S = 1.0  # before a part that ended by itself is started again; doubles up to _LONGEST_PAUSE_S
_LONGEST_PAUSE_S = 30.0
_RECHECK_S = 1.0  # how soon a part that was started meanwhile is watched too


@dataclass(frozen=True, slots=True)
class Part:
    """A program and how to tell that it is ready.

    Attributes:
        name: Such as "compiler"; also names its log.
        program: Argument list; the first is a path.
        log: File for its output.
        working_dir: Where it runs; made if missing.
        environ: Its whole environment.
        ready: Asked until it says yes.
        grace_s: How long it may take to stop.
    """

    name: str
    program: tuple[str, ...]
    log: Path
    working_dir: Path
    environ: Mapping[str, str] = field(repr=False)
    ready: Callable[[], Awaitable[bool]]
    grace_s: float = 10.0


class Supervisor:
    """The programs that run. Belongs to one event loop, which must live in a thread that outlives the programs."""

    def __init__(self) -> None:
        self._makers: dict[str, Callable[[], Part]] = {}
        self._parts: dict[str, Part] = {}
        self._children: dict[str, ChildProcess] = {}
        self._wanted: set[str] = set()

    def child(self, name: str) -> ChildProcess:
        """The process of a part.

        Raises:
            NotFoundError: No such part was started.
        """
        try:
            return self._children[name]
        except KeyError:
            raise NotFoundError(f"no part {name!r}; there are {', '.join(self._children) or 'none'}") from None

    async def start(self, make: Callable[[], Part]) -> None:
        """Start a part and wait until it is ready; if it is not, nothing of it is left.

        Args:
            make: Gives the part; called again for every restart, in a thread, because a port may be known by then.

        Raises:
            UnavailableError: It ended instead; the end of its log is in the text.
            DeadlineError: It was not ready in time.
        """
        part = await asyncio.to_thread(make)
        await asyncio.to_thread(part.working_dir.mkdir, parents=True, exist_ok=True)
        child = await start_process(
            part.name, part.program, log=part.log, environ=part.environ, working_dir=part.working_dir
        )
        self._makers[part.name], self._parts[part.name], self._children[part.name] = make, part, child
        try:
            await child.wait_until(part.ready, timeout_s=START_TIMEOUT_S)
        except BaseException:
            await asyncio.shield(child.stop(grace_s=part.grace_s))
            raise
        self._wanted.add(part.name)

    async def stop(self, name: str) -> None:
        """Stop a part in order; it is not started again."""
        child = self.child(name)
        self._wanted.discard(name)
        await child.stop(grace_s=self._parts[name].grace_s)

    async def kill(self, name: str) -> None:
        """Kill a part and its group at once, as a crash would; it is not started again."""
        child = self.child(name)
        self._wanted.discard(name)
        await child.kill()

    async def restart(self, name: str) -> None:
        """Stop a part if it runs, and start it as it was started before."""
        await self.stop(name)
        await self.start(self._makers[name])

    async def stop_all(self) -> None:
        """Stop every part, the last started first. Calling it again is harmless."""
        self._wanted.clear()
        for name in reversed(list(self._children)):
            await self._children[name].stop(grace_s=self._parts[name].grace_s)
        self._children.clear()

    async def keep_running(self, on_end: Callable[[DovetailError], None]) -> None:
        """Start parts again that end by themselves, with growing pauses; runs until cancelled.

        Args:
            on_end: Told about each unexpected end, with the end of the log.
        """
        pauses: dict[str, float] = {}
        while True:
            name = await self._next_end()
            on_end(self._children[name].failure())
            pause_s = min(_LONGEST_PAUSE_S, pauses.get(name, _FIRST_PAUSE_S / 2) * 2)
            pauses[name] = pause_s
            await asyncio.sleep(pause_s)
            try:
                await self.restart(name)
            except DovetailError as exc:
                self._wanted.add(name)  # so that it is tried again
                _log.warning("part.restart_failed name=%s why=%r", name, str(exc).splitlines()[0])

    async def _next_end(self) -> str:
        """Name of a wanted part that is not running."""
        while True:
            if not self._wanted:
                await asyncio.sleep(_RECHECK_S)
                continue
            waits = {asyncio.ensure_future(self._children[name].wait()): name for name in sorted(self._wanted)}
            try:
                done, _ = await asyncio.wait(waits, timeout=_RECHECK_S, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
            ended = sorted(waits[wait] for wait in done if waits[wait] in self._wanted)
            if ended:
                return ended[0]


async def is_healthy(address: str, service: str = "") -> bool:
    """True if a gRPC server answers there and says that the service is SERVING."""
    async with open_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        with contextlib.suppress(grpc.RpcError):
            reply = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=2.0)
            return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)
    return False


def read_port_file(path: Path) -> int | None:
    """The port that a server wrote there; None as long as it has not."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
