# SPDX-License-Identifier: Apache-2.0
"""What the job layer promises, apart from how Redis keeps it (`redis_jobs`).

A job is named by its artifact key, so asking twice attaches to the first (single flight). A worker holds a job by a
lease that the server's clock ends; every claim raises the fence, and a publish or failure with an older fence is
refused: the first publisher wins, a worker that slept through its lease changes nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dovetail.pb.v1.compiler_pb2 import Build, BuildEvent, BuildFailure, BuildPriority, Job, Worker
from dovetail.pb.v1.storage_pb2 import BuildJob, WorkerRecord


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on one job until the lease ends.

    Attributes:
        job: What to build.
        fence: Grows with every claim of any job; publishes with an older one are refused.
        worker: Id of the holder.
        attempt: 1 for the first try.
        token: This claim's own, so that no other lease equals it whatever Redis lost and however its clock was set.
    """

    job: BuildJob
    fence: int
    worker: str
    attempt: int
    token: str = ""


@dataclass(frozen=True, slots=True)
class Overview:
    """The queue at one moment.

    Attributes:
        jobs: Those that run, then those that wait in line; or the dead ones. Only the first ones of very many.
        total: How many there are.
        now_ms: When that was, by the server's clock.
    """

    jobs: tuple[Job, ...]
    total: int
    now_ms: int


class JobQueue(Protocol):
    """Build jobs. All methods are safe to call concurrently; UnavailableError if Redis does not answer."""

    async def submit(self, job: BuildJob, *, force: bool = False) -> Build:
        """Order a build, or attach to the one that is queued, running, ready or known to fail.

        With `force` an ended build is ordered anew. A priority above the job's raises it; an order without one is a
        node's. The returned record is the state after the call; `cached` is set if the result (or typed failure) was
        already known.
        """
        ...

    async def claim(self, worker: WorkerRecord, *, wait_s: float) -> Lease | None:
        """Take the next job that this worker can build; None if there was none within the wait.

        Next is the highest priority, then the first in line; every fourth time the one that has waited longest. A job
        whose lease ended is taken again in its old place, at most 3 times in all; before the third try it waits for a
        while, after it the job fails with kind INFRASTRUCTURE.
        """
        ...

    async def renew(self, lease: Lease) -> bool:
        """Extend the lease; False if it is lost or the build was cancelled: stop working."""
        ...

    async def progress(self, lease: Lease, build: Build) -> bool:
        """Record a state (phase, fraction, message, figures, log), tell the watchers; False if the lease is lost."""
        ...

    async def publish(self, lease: Lease, manifest: bytes, build: Build, envelope: bytes = b"") -> bool:
        """Make the artifact visible (atomic: checks the fence, flips the state, emits READY); False if refused.

        `envelope` is the DSSE envelope of the manifest's bytes, empty if this worker does not sign.
        """
        ...

    async def fail(self, lease: Lease, failure: BuildFailure, build: Build) -> bool:
        """End the build with a typed failure and remember it (negative cache); False if the lease is lost."""
        ...

    async def release(self, lease: Lease) -> bool:
        """Give a job back before the lease ends (the worker stops); the attempt does not count. False if it is lost."""
        ...

    async def cancel(self, artifact_key: str, *, why: str = "", only_waiting: bool = False) -> Build:
        """Ask for a build to stop, with a message. NotFoundError, PreconditionError as in CancelBuild.

        With `only_waiting` a build that a worker has begun goes on, which is a PreconditionError, too.
        """
        ...

    async def retry(self, artifact_key: str, priority: BuildPriority) -> Build:
        """Order a job that failed or was cancelled again. NotFoundError, PreconditionError as in RetryJobs."""
        ...

    async def get(self, artifact_key: str) -> Build | None:
        """State of one build."""
        ...

    async def list(self, model: str = "", version: int = 0) -> Sequence[Build]:
        """Builds, newest first."""
        ...

    def watch(
        self, artifact_keys: Iterable[str], *, after: str = "", with_log: bool = False
    ) -> AsyncIterator[BuildEvent]:
        """The current state of each build, then its changes until all have ended; UnavailableError without Redis.

        With `after` first the changes since that event. Events are shared between watchers: copy before you change one.
        A watcher that reads slowly is told the newest state of each build and not every step.
        """
        ...

    async def overview(self, *, dead: bool = False, hardware_class: str = "") -> Overview:
        """Jobs that run and wait, of all classes or of those whose keys begin so; or the dead ones."""
        ...

    async def staff(self) -> Sequence[Worker]:
        """Live workers with what they build."""
        ...

    async def heartbeat(self, worker: WorkerRecord) -> None:
        """Tell that a worker is alive (kept 30 s) and what it can build."""
        ...

    async def leave(self, worker_id: str) -> None:
        """A worker has stopped: forget it at once."""
        ...

    async def workers(self) -> Sequence[WorkerRecord]:
        """Workers alive by the server's clock."""
        ...
