# SPDX-License-Identifier: Apache-2.0
"""Following builds: the events of a call as values, across restarts of the service, and what they come to.

A stream that breaks off is resumed from its last event: as soon as all its builds were told by watching those that have
not ended, else by the same order again, which attaches to what was ordered and forces nothing twice.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from dovetail.client.messages import read_build_event
from dovetail.client.results import Build, BuildEvent
from dovetail.errors import NotFoundError, UnavailableError
from dovetail.pb.v1 import compiler_pb2 as pb
from dovetail.pb.v1.compiler_pb2_grpc import CompilerStub
from dovetail.rpc.status import translated_errors

PATIENCE_S = 300.0
"""A service that does not answer for so long is given up."""

MAX_PAUSE_S = 5.0
"""Longest pause between attempts; drawn at random up to it, so that a fleet does not come back all at once."""

OnInterrupted = Callable[[str], None]
"""Told once that a stream broke off, and once that it goes on."""

_ENDED = (pb.BUILD_PHASE_READY, pb.BUILD_PHASE_FAILED, pb.BUILD_PHASE_CANCELLED)


class _Seen:
    """What a stream has told so far."""

    def __init__(self) -> None:
        self.last = ""
        self.open: dict[str, None] = {}
        self._names: set[tuple[str, str, str]] = set()
        self._total = 0

    def take(self, event: pb.BuildEvent) -> None:
        build = event.build
        self.last = event.event_id or self.last
        self._total = self._total or event.builds
        self._names.add((build.artifact_key, build.recipe.name, build.hardware_class))
        if build.artifact_key and build.phase not in _ENDED:
            self.open[build.artifact_key] = None
        else:
            self.open.pop(build.artifact_key, None)

    @property
    def all_told(self) -> bool:
        """True if every build of the stream is known."""
        return 0 < self._total <= len(self._names)


class Following:
    """One order or watch and its resumption; used once.

    Args:
        compiler: The service.
        address: host:port of it, for messages.
        request: What begins it: CompileRequest, RebuildRequest or WatchBuildsRequest.
        on_interrupted: Told of interruptions, or None.
    """

    def __init__(
        self,
        compiler: CompilerStub,
        address: str,
        request: pb.CompileRequest | pb.RebuildRequest | pb.WatchBuildsRequest,
        on_interrupted: OnInterrupted | None,
    ) -> None:
        self._compiler = compiler
        self._address = address
        self._request = request
        self._say = on_interrupted or _unheard
        self._seen = _Seen()
        self._record_lost = False
        self._attempt = 0  # to come back; 0 while there is contact
        self._lost_s = 0.0

    async def events(self) -> AsyncGenerator[BuildEvent, None]:
        """All events until every build has ended; leaving it ends no build.

        Raises:
            UnavailableError: The service did not answer at first, or has not answered for 5 minutes.
        """
        call = self._begin()
        while True:
            try:
                with translated_errors(self._address):
                    await self._meet(call)
                    async for event in call:
                        self._seen.take(event)
                        yield read_build_event(event)
                return
            except UnavailableError as exc:
                self._bear(exc)
            except NotFoundError:  # a build's record went with Redis' data: order again
                if self._record_lost or not self._seen.last or not isinstance(self._request, pb.CompileRequest):
                    raise
                self._record_lost = True
            finally:
                call.cancel()
            if self._seen.all_told and not self._seen.open:
                return
            longest_s = min(MAX_PAUSE_S, 0.5 * 2**self._attempt)
            await asyncio.sleep(random.uniform(0.1, longest_s))  # noqa: S311 (spreads the load)
            call = self._resume()

    async def _meet(self, call: Any) -> None:
        """Wait until the service has answered; it does so before the first event."""
        await call.initial_metadata()
        if not call.done() and self._attempt:
            self._attempt = 0
            self._say(f"{self._address} is back; watching again")

    def _bear(self, error: UnavailableError) -> None:
        """Take note that the service is lost; raises the error if it never told anything, or has been lost for long."""
        now_s = asyncio.get_running_loop().time()
        if not self._attempt:
            self._lost_s = now_s
        if not self._seen.last or now_s - self._lost_s > PATIENCE_S:
            raise error
        if not self._attempt:
            self._say(f"{error}; the builds go on, waiting for {self._address}")
        self._attempt = min(self._attempt + 1, 10)

    def _begin(self) -> Any:
        if isinstance(self._request, pb.CompileRequest):
            return self._compiler.Compile(self._request)
        if isinstance(self._request, pb.RebuildRequest):
            return self._compiler.Rebuild(self._request)
        return self._compiler.WatchBuilds(self._request)

    def _resume(self) -> Any:
        request = self._request
        if isinstance(request, pb.CompileRequest) and (self._record_lost or not self._seen.all_told):
            again = pb.CompileRequest()
            again.CopyFrom(request)
            again.after_event_id = self._seen.last
            return self._compiler.Compile(again)
        with_log = not isinstance(request, pb.RebuildRequest) and request.with_log
        return self._compiler.WatchBuilds(
            pb.WatchBuildsRequest(artifact_keys=self._seen.open, after_event_id=self._seen.last, with_log=with_log)
        )


def _unheard(text: str) -> None:
    """Nobody wants to know."""


async def last_states(events: AsyncGenerator[BuildEvent, None]) -> tuple[Build, ...]:
    """The last state of every build, in order of first appearance; what is only told has no key and counts, too."""
    builds: dict[tuple[str, str, str], Build] = {}
    async with aclosing(events):
        async for event in events:
            build = event.build
            builds[build.artifact_key, build.recipe.name, build.hardware_class] = build
    return tuple(builds.values())
