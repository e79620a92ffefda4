# SPDX-License-Identifier: Apache-2.0
"""The queue for who operates it: what runs, what waits and why, what died, who builds; and trying dead jobs again.

What a job is and how it is ordered is `orders`' business; `ListBuilds` is the same builds by model, the past included.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress

from compiler_svc.jobs.base import JobQueue
from compiler_svc.orders import BuildOrders
from dovetail.digest import check_digest
from dovetail.errors import InvalidInputError, NotFoundError, PreconditionError
from dovetail.pb.v1 import compiler_pb2 as pb

_log = logging.getLogger(__name__)


class QueueDesk:
    """Lists and retries; safe for concurrent calls of one event loop."""

    def __init__(self, jobs: JobQueue, orders: BuildOrders) -> None:
        self._jobs = jobs
        self._orders = orders

    async def jobs(self, request: pb.ListJobsRequest) -> pb.ListJobsResponse:
        """Jobs in the order in which they would be taken, then orders that have no worker; or the dead ones.

        Raises:
            UnavailableError: The queue or the durable tier does not answer.
        """
        found = await self._jobs.overview(dead=request.dead, hardware_class=request.hardware_class)
        orders = [] if request.dead else await self._orders.waiting()
        kept = [build for build in orders if build.hardware_class.startswith(request.hardware_class)]
        unplaced = (pb.Job(build=build, wait=pb.JOB_WAIT_NO_WORKER, why=build.message) for build in kept)
        total = found.total + len(kept)
        return pb.ListJobsResponse(jobs=[*found.jobs, *unplaced], total=total, now_ms=found.now_ms)

    async def workers(self) -> pb.ListWorkersResponse:
        """Live workers. Raises UnavailableError."""
        return pb.ListWorkersResponse(workers=await self._jobs.staff())

    async def retry(self, request: pb.RetryJobsRequest) -> pb.RetryJobsResponse:
        """Order failed or cancelled jobs again.

        Raises:
            InvalidInputError: Neither keys nor all_dead, both, or a bad key.
            NotFoundError: There is no such job.
            PreconditionError: A named job has not ended, or is ready.
            UnavailableError: The queue does not answer.
        """
        if bool(request.artifact_keys) == request.all_dead:
            raise InvalidInputError("name the jobs to try again, or say all_dead; not both, not neither")
        if request.all_dead:
            builds = await self._retry_dead()
        else:
            keys = [check_digest(key, "artifact key") for key in request.artifact_keys]
            builds = [await self._jobs.retry(key, pb.BUILD_PRIORITY_INTERACTIVE) for key in keys]
        _log.info("jobs.retried count=%d all_dead=%s", len(builds), request.all_dead)
        return pb.RetryJobsResponse(builds=builds)

    async def _retry_dead(self) -> Sequence[pb.Build]:
        builds: list[pb.Build] = []
        tried: set[str] = set()
        while True:  # an overview shows the first ones of very many
            keys = {job.build.artifact_key for job in (await self._jobs.overview(dead=True)).jobs} - tried
            if not keys:
                return builds
            tried |= keys
            for key in sorted(keys):
                with suppress(NotFoundError, PreconditionError):  # somebody else was faster
                    builds.append(await self._jobs.retry(key, pb.BUILD_PRIORITY_NODE))
