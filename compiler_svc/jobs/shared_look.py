# SPDX-License-Identifier: Apache-2.0
"""Reading the state of builds for many who ask at once: one step in Redis for all that came while the last one ran."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from compiler_svc.jobs.policy import QueuePolicy
from compiler_svc.jobs.record import State, read_state
from compiler_svc.keys import Keys
from compiler_svc.lua_scripts import job_script
from dovetail.pb.v1.compiler_pb2 import Build
from dovetail.pb.v1.storage_pb2 import BuildJob
from dovetail.store.redis_connection import RedisConnection

Look = tuple[str, Mapping[str, tuple[BuildJob, State] | Build | None]]
"""Id of the last event, and the builds as they were then: job and state, a build without a job, or None."""

_PAGE = 500  # builds read in one step


class SharedLook:
    """Looks at builds; belongs to one event loop. What it returns is shared: do not change it."""

    def __init__(self, redis: RedisConnection, keys: Keys, policy: QueuePolicy) -> None:
        self._redis = redis
        self._keys = keys
        self._policy = policy
        self._one = asyncio.Lock()
        self._wanted: set[str] = set()
        self._next: asyncio.Task[Look] | None = None
        self._running: set[asyncio.Task[Look]] = set()

    async def look(self, artifact_keys: Iterable[str]) -> Look:
        """The builds as they are at some moment after the call; perhaps others', too. Raises UnavailableError."""
        self._wanted.update(artifact_keys)
        if self._next is None:
            self._next = asyncio.create_task(self._read())
            self._running.add(self._next)
            self._next.add_done_callback(self._ended)
        return await asyncio.shield(self._next)  # one that goes away must not take it from the others

    async def settle(self) -> None:
        """Wait for what was begun and nobody waits for any more, so that the connection may be closed."""
        await asyncio.gather(*self._running, return_exceptions=True)

    def _ended(self, task: asyncio.Task[Look]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # read, so that one which nobody waited for to its end is not reported as forgotten

    async def _read(self) -> Look:
        async with self._one:
            wanted, self._wanted, self._next = sorted(self._wanted), set(), None
            last = ""
            found: dict[str, tuple[BuildJob, State] | Build | None] = {}
            for start in range(0, len(wanted), _PAGE):
                page = wanted[start : start + _PAGE]
                newest, *entries = await self._redis.run(
                    job_script("snapshot"), self._keys.prefix, *self._policy.arguments(), *page
                )
                last = last or newest.decode()  # of the first page: what came meanwhile is told again, not missed
                found |= {key: read_state(entry) for key, entry in zip(page, entries, strict=True)}
            return last, found
