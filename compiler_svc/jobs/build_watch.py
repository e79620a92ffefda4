# SPDX-License-Identifier: Apache-2.0
"""Watching builds: what they are now, then every change from the event stream, until all have ended.

The snapshot and the id of the last event are read in one step, so no change is missed or shown twice. While nothing
happens the state is read again now and then, which also takes back the jobs of dead workers when no other worker does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence

from compiler_svc.jobs.policy import QueuePolicy
from compiler_svc.jobs.record import ENDED, State, build_of, read_state
from compiler_svc.keys import Keys
from compiler_svc.lua_scripts import job_script
from dovetail.errors import NotFoundError, UnavailableError
from dovetail.pb.v1.compiler_pb2 import Build, BuildEvent
from dovetail.pb.v1.storage_pb2 import BuildJob
from dovetail.store.redis_connection import RedisConnection

REFRESH_MS = 2000
"""While nothing happens the state is read again this often: how late a dead worker's job is noticed at most."""

_PAGE = 500  # events read at once


class BuildWatch:
    """One watcher's view of some builds; used by one task."""

    def __init__(self, redis: RedisConnection, keys: Keys, policy: QueuePolicy, artifact_keys: Iterable[str]) -> None:
        self._redis = redis
        self._keys = keys
        self._policy = policy
        self._open = list(dict.fromkeys(artifact_keys))
        self._jobs: dict[str, tuple[BuildJob, State]] = {}
        self._position = ""

    async def events(self, after: str) -> AsyncIterator[BuildEvent]:
        """See `JobQueue.watch`."""
        last, first = await self._snapshot()
        if after:
            self._position = after
            async for event in self._replay(last):
                yield event
        self._position = last
        for key, build in first:
            if key in self._open and not (after and build.phase not in ENDED):
                yield self._event(build)
        while self._open:
            entries = await self._wait()
            for event in self._read(entries):
                yield event
            if not entries:
                for event in await self._ended_unseen():
                    yield event

    async def _ended_unseen(self) -> Sequence[BuildEvent]:
        """Final events of builds whose own events were trimmed from the stream before this watcher read them."""
        _, builds = await self._snapshot()
        unread = await self._redis.call("XRANGE", self._keys.events, f"({self._position}", "+", "COUNT", 1)
        if unread:
            return []
        return [self._event(build) for _, build in builds if build.phase in ENDED]

    async def _snapshot(self) -> tuple[str, list[tuple[str, Build]]]:
        last, *entries = await self._redis.run(
            job_script("snapshot"), self._keys.prefix, *self._policy.arguments(), *self._open
        )
        builds = []
        for key, entry in zip(self._open, entries, strict=True):
            found = read_state(entry)
            if found is None:
                raise self._gone(key)
            if isinstance(found, Build):
                builds.append((key, found))
            else:
                self._jobs[key] = found
                builds.append((key, build_of(*found)))
        return last.decode(), builds

    def _gone(self, key: str) -> Exception:
        if key in self._jobs:
            return UnavailableError(f"the record of build {key[:12]}… was lost with Redis' data; order it again")
        return NotFoundError(f"there is no build {key[:12]}…; list what there is with `dovetail artifacts`")

    async def _wait(self) -> Sequence[tuple[bytes, State]]:
        reply = await self._redis.call(
            "XREAD", "COUNT", _PAGE, "BLOCK", REFRESH_MS, "STREAMS", self._keys.events, self._position
        )
        return reply[0][1] if reply else []

    async def _replay(self, upto: str) -> AsyncIterator[BuildEvent]:
        while self._open:
            entries = await self._redis.call("XRANGE", self._keys.events, f"({self._position}", upto, "COUNT", _PAGE)
            if not entries:
                return
            for event in self._read(entries):
                yield event

    def _read(self, entries: Sequence[tuple[bytes, State]]) -> Iterable[BuildEvent]:
        for event_id, change in entries:
            self._position = event_id.decode()
            key = change[b"key"].decode()
            if key in self._open and key in self._jobs:
                job, state = self._jobs[key]
                self._jobs[key] = (job, {**state, **change})
                yield self._event(build_of(*self._jobs[key]))

    def _event(self, build: Build) -> BuildEvent:
        if build.phase in ENDED:
            self._open.remove(build.artifact_key)
        return BuildEvent(event_id=self._position, build=build)
