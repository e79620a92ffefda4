# SPDX-License-Identifier: Apache-2.0
"""The worker's life: say that it is alive, claim, build, repeat; drain when told to stop, and say that, too.

Draining it takes nothing more, and nothing is routed to it; what it builds it finishes, or gives back when the time for
that is over or somebody is in a hurry. An outage of the queue is waited out. What a build
does is `leased_build`'s business.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from compiler_svc.jobs.base import JobQueue, Lease
from compiler_svc.storage import pause
from compiler_svc.worker.leased_build import LeasedBuild
from dovetail.errors import DovetailError
from dovetail.pb.v1.storage_pb2 import WorkerRecord

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """Times of the loop.

    Attributes:
        concurrency: Builds at once.
        heartbeat_s: How often the worker says that it is alive.
        claim_wait_s: How long one claim waits for a job.
        drain_s: How long running builds may go on after the stop.
        retry_s: Pause after the queue did not answer.
    """

    concurrency: int = 1
    heartbeat_s: float = 5.0
    claim_wait_s: float = 2.0
    drain_s: float = 20.0
    retry_s: float = 1.0


class WorkerLoop:
    """Runs until its stop event; belongs to one event loop."""

    def __init__(
        self, record: WorkerRecord, jobs: JobQueue, *, task_for: Callable[[Lease], LeasedBuild], options: LoopOptions
    ) -> None:
        self._record = record
        self._jobs = jobs
        self._task_for = task_for
        self._options = options
        self._queue_lost = False

    async def run(self, stop: asyncio.Event, hurry: asyncio.Event | None = None) -> None:
        """Work until `stop` is set; then finish what runs, or give it back after the drain time or when `hurry` is."""
        hurry = hurry or asyncio.Event()
        async with asyncio.TaskGroup() as group:
            beating = group.create_task(self._beat(stop))
            claimers = [group.create_task(self._claim_and_build(stop, hurry)) for _ in range(self._options.concurrency)]
            await asyncio.wait(claimers)
            beating.cancel()
        with suppress(DovetailError):  # then it is forgotten when it has been silent for long enough
            await self._jobs.leave(self._record.id)

    async def _beat(self, stop: asyncio.Event) -> None:
        while True:
            if stop.is_set():
                self._record.draining = True
            with suppress(DovetailError):  # the claim says so
                await self._jobs.heartbeat(self._record)
            if self._record.draining:
                await asyncio.sleep(self._options.heartbeat_s)
            else:
                await pause(stop, self._options.heartbeat_s)

    async def _claim_and_build(self, stop: asyncio.Event, hurry: asyncio.Event) -> None:
        stopped = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                lease = await self._claim(stop, stopped)
                if lease is not None:
                    await self._build(lease, stopped, hurry)
        finally:
            stopped.cancel()

    async def _claim(self, stop: asyncio.Event, stopped: asyncio.Task[bool]) -> Lease | None:
        claiming = asyncio.create_task(self._jobs.claim(self._record, wait_s=self._options.claim_wait_s))
        try:
            await asyncio.wait((claiming, stopped), return_when=asyncio.FIRST_COMPLETED)
            # A claim that is under way is waited for: cancelled between server and client it would strand a job.
            lease = await claiming
        except DovetailError as exc:  # away, full, or it refuses: whoever minds it can mend that, and this goes on
            if not self._queue_lost:
                _log.warning("worker.queue_lost why=%r", str(exc))
            self._queue_lost = True
            await pause(stop, self._options.retry_s)
            return None
        if self._queue_lost:
            _log.info("worker.queue_back")
        self._queue_lost = False
        return lease

    async def _build(self, lease: Lease, stopped: asyncio.Task[bool], hurry: asyncio.Event) -> None:
        job = lease.job
        _log.info(
            "build.started key=%s model=%s version=%d recipe=%s attempt=%d fence=%d",
            job.artifact_key, job.model, job.version, job.recipe.name, lease.attempt, lease.fence,
        )  # fmt: skip
        working = asyncio.create_task(self._task_for(lease).work())
        try:
            await asyncio.wait((working, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                _log.info("worker.draining key=%s limit_s=%.0f", job.artifact_key, self._options.drain_s)
                await self._drain(working, hurry)
        finally:
            working.cancel()
            await asyncio.wait((working,))
        self._check(lease, working)

    async def _drain(self, working: asyncio.Task[None], hurry: asyncio.Event) -> None:
        hurried = asyncio.create_task(hurry.wait())
        await asyncio.wait((working, hurried), timeout=self._options.drain_s, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()

    def _check(self, lease: Lease, working: asyncio.Task[None]) -> None:
        """Log a build whose end could not be told; raise what is a bug."""
        if not working.cancelled() and (error := working.exception()) is not None:
            if not isinstance(error, DovetailError):
                raise error
            _log.error("build.end_untold key=%s why=%r", lease.job.artifact_key, str(error))
