# SPDX-License-Identifier: Apache-2.0
"""Watching builds: what they are now, then every change from the event stream, until all have ended.

The mailbox is opened before the snapshot is taken, and what the snapshot already shows is not told again, so no change
is missed or shown twice. How events reach the mailbox is `event_hub`'s business.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping

from compiler_svc.jobs.event_hub import EventHub, Mailbox, StreamEvent, position_of
from compiler_svc.jobs.record import ENDED, State, build_of
from dovetail.errors import NotFoundError
from dovetail.pb.v1.compiler_pb2 import Build, BuildEvent
from dovetail.pb.v1.storage_pb2 import BuildJob


class BuildWatch:
    """One watcher's view of some builds; used by one task, once."""

    def __init__(self, hub: EventHub, artifact_keys: Iterable[str], *, with_log: bool) -> None:
        self._hub = hub
        self._open = list(dict.fromkeys(artifact_keys))
        self._mailbox = Mailbox(self._open, with_log=with_log)
        self._jobs: dict[str, tuple[BuildJob, State]] = {}
        self._told: set[str] = set()

    async def events(self, after: str) -> AsyncIterator[BuildEvent]:
        """See `JobQueue.watch`."""
        try:
            await self._hub.open(self._mailbox)
            last, builds = await self._begin()
            whole = not after
            if after:
                whole, missed = await self._hub.since(after, last)
                for event in missed:
                    if (told := self._message(event, "")) is not None:
                        yield told
            for key, build in builds.items():
                untold = key not in self._told and not (after and whole)
                if key in self._open and (untold or build.phase in ENDED):
                    yield self._closing(BuildEvent(event_id=last, build=build))
            async for told in self._live(last):
                yield told
        finally:
            await self._hub.close(self._mailbox)

    async def _live(self, last: str) -> AsyncIterator[BuildEvent]:
        """What happens from now on, but not what the snapshot of that moment showed."""
        while self._open:
            for event, log in await self._mailbox.take():
                if (event.found or position_of(event.event_id) > position_of(last)) and (
                    told := self._message(event, log)
                ) is not None:
                    yield told

    async def _begin(self) -> tuple[str, Mapping[str, Build]]:
        """Id of the last event, and every build as it was then."""
        last, found = await self._hub.snapshot(self._open)
        builds: dict[str, Build] = {}
        for key in self._open:
            state = found[key]
            if state is None:
                raise NotFoundError(f"there is no build {key[:12]}…; list what there is with `dovetail artifacts`")
            if isinstance(state, Build):
                builds[key] = state
            else:
                job, fields = self._jobs[key] = state
                builds[key] = build_of(job, fields if self._mailbox.with_log else {**fields, b"log": b""})
        return last, builds

    def _message(self, event: StreamEvent, log: str) -> BuildEvent | None:
        key = event.artifact_key
        if key not in self._open or key not in self._jobs:
            return None
        if event.found and int(event.change[b"updated"]) < int(self._jobs[key][1][b"updated"]):
            return None  # it was ordered anew since it was looked at
        return self._closing(event.message(*self._jobs[key], log))

    def _closing(self, event: BuildEvent) -> BuildEvent:
        """The event, after taking note of it: a build that has ended is watched no more."""
        key = event.build.artifact_key
        self._told.add(key)
        if event.build.phase in ENDED:
            self._open.remove(key)
            self._hub.leave(self._mailbox, key)
        return event
