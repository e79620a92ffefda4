# SPDX-License-Identifier: Apache-2.0
"""Keeps a process from using a Redis that is set up wrongly, at its start and as long as it runs.

At the start a wrong server is refused. Later it is treated as one that does not answer: everything that can wait for
Redis waits, nodes go on serving, and when it was put right work goes on without a restart. Which settings are wrong is
said in `dovetail.store.redis_roles`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable

from dovetail.errors import DovetailError, UnavailableError
from dovetail.store.redis_connection import RedisConnection
from dovetail.store.redis_roles import Findings, inspect_blob, inspect_meta, same_server

CHECK_EVERY_S = 15.0
"""How long a policy that somebody changed on a running server may go unnoticed; an INFO costs it far below 1 ms."""

_log = logging.getLogger(__name__)


class RedisGuard:
    """Checks the servers of both roles.

    Args:
        meta: Where index and jobs are.
        blob: Where copies of chunks are; the very same object if that is one server.
        every_s: Time between checks; a server that comes back is checked at once.
    """

    def __init__(self, meta: RedisConnection, blob: RedisConnection, *, every_s: float = CHECK_EVERY_S) -> None:
        self._meta = meta
        self._blob = blob
        self._every_s = every_s
        self._told: frozenset[str] = frozenset()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Look once, say what is not ideal, and go on looking until `aclose`.

        Raises:
            PreconditionError: The servers must not be used as they are set up; says what to set.
        """
        try:
            meta, blob = await self._inspect()
        except UnavailableError:  # it went away again; looked at when it is back
            meta, blob = Findings(), Findings()
        meta.check()
        blob.check()
        self._tell(meta, blob)
        self._task = asyncio.create_task(self._watch())

    async def aclose(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._meta.back.wait()
            self._meta.back.clear()
            try:
                meta, blob = await self._inspect()
            except DovetailError:  # not there or not telling; whoever needs it says so
                continue
            self._tell(meta, blob)
            self._blob.hold("; ".join(blob.refusals) or None)
            self._meta.hold("; ".join(meta.refusals) or None)

    async def _inspect(self) -> tuple[Findings, Findings]:
        """Of META and of BLOB; a server of chunks that is down is nobody's error."""
        if self._blob is self._meta:
            return await inspect_meta(self._meta, shared=True), Findings()
        try:
            if await same_server(self._meta, self._blob):
                return await inspect_meta(self._meta, shared=True), Findings()
            blob = await inspect_blob(self._blob)
        except UnavailableError as exc:
            blob = Findings(warnings=(f"chunks come from the durable tier alone: {exc}",))
        return await inspect_meta(self._meta, shared=False), blob

    def _tell(self, *found: Findings) -> None:
        """Say what is new, once."""
        refusals = [text for findings in found for text in findings.refusals]
        warnings = [text for findings in found for text in findings.warnings]
        self._say(logging.ERROR, "redis.refused", refusals)
        self._say(logging.WARNING, "redis.set_up_badly", warnings)
        now = frozenset((*refusals, *warnings))
        if self._told - now:
            _log.info("redis.put_right problems=%d", len(self._told - now))
        self._told = now

    def _say(self, level: int, event: str, texts: Iterable[str]) -> None:
        for text in texts:
            if text not in self._told:
                _log.log(level, "%s why=%r", event, text)
