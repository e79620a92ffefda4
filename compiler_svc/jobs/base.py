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

from dovetail.pb.v1.compiler_pb2 import Build, BuildEvent, BuildFailure
from dovetail.pb.v1.storage_pb2 import BuildJob, WorkerRecord


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on one job until the lease ends.

    Attributes:
        job: What to build.
        fence: Grows with every claim of any job; publishes with an older one are refused.
        worker: Id of the holder.
        attempt: 1 for the first try.
    """

    job: BuildJob
    fence: int
    worker: str
    attempt: int


class JobQueue(Protocol):
    """Build jobs. All methods are safe to call concurrently; UnavailableError if Redis does not answer."""

    async def submit(self, job: BuildJob, *, force: bool = False) -> Build:
        """Order a build, or attach to the one that is queued, running, ready or known to fail.

        With `force` an ended build is ordered anew. The returned record is the state after the call; `cached` is set if
        the result (or typed failure) was already known.
        """
        ...

    async def claim(self, worker: WorkerRecord, *, wait_s: float) -> Lease | None:
        """Take the oldest job that this worker can build; None if there was none within the wait.

        A job whose lease ended is taken again, at most 3 times in all; after that it fails with kind INFRASTRUCTURE.
        """
        ...

    async def renew(self, lease: Lease) -> bool:
        """Extend the lease; False if it is lost or the build was cancelled: stop working."""
        ...

    async def progress(self, lease: Lease, build: Build) -> None:
        """Record a new state (phase, fraction, message, figures) and tell the watchers; ignored without a lease."""
        ...

    async def publish(self, lease: Lease, manifest: bytes, build: Build) -> bool:
        """Make the artifact visible (atomic: checks the fence, flips the state, emits READY); False if refused."""
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

    async def get(self, artifact_key: str) -> Build | None:
        """State of one build."""
        ...

    async def list(self, model: str = "", version: int = 0) -> Sequence[Build]:
        """Builds, newest first."""
        ...

    def watch(self, artifact_keys: Iterable[str], *, after: str = "") -> AsyncIterator[BuildEvent]:
        """The current state of each build, then every change until all have ended; UnavailableError without Redis."""
        ...

    async def heartbeat(self, worker: WorkerRecord) -> None:
        """Tell that a worker is alive (kept 30 s) and what it can build."""
        ...

    async def workers(self) -> Sequence[WorkerRecord]:
        """Workers alive by the server's clock."""
        ...
