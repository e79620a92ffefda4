# SPDX-License-Identifier: Apache-2.0
"""What a worker tells while it builds: phase, fraction, message, figures, and the end of the child's log.

Nothing here ends a build or takes part in it; telling may fail at any time and is then done with the next step.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from compiler_svc.jobs.base import JobQueue, Lease
from compiler_svc.worker.build_spec import Progress
from compiler_svc.worker.sandbox import log_tail
from dovetail.errors import DovetailError
from dovetail.pb.v1 import compiler_pb2 as pb

PROGRESS_S = 0.2
"""At most this often a step is told on: a progress bar needs no more, and Redis keeps every step."""

LOG_S = 1.0
"""At most this often the end of the child's log is told on."""

_PHASES = {
    "building": pb.BUILD_PHASE_BUILDING,
    "gating": pb.BUILD_PHASE_GATING,
    "measuring": pb.BUILD_PHASE_MEASURING,
}
_log = logging.getLogger(__name__)


class BuildReport:
    """The state of one build and its telling; belongs to one event loop.

    Attributes:
        state: What is known; change it, then call `tell`.
    """

    def __init__(self, lease: Lease, jobs: JobQueue) -> None:
        self._lease = lease
        self._jobs = jobs
        self._news = asyncio.Event()
        job = lease.job
        self.state = pb.Build(
            artifact_key=job.artifact_key,
            model=job.model,
            version=job.version,
            recipe=job.recipe,
            hardware_class=job.hardware_class,
            phase=pb.BUILD_PHASE_BUILDING,
            message="fetching the model",
            attempts=lease.attempt,
        )

    def tell(self) -> None:
        """The state has changed."""
        self._news.set()

    def heard(self, progress: Progress) -> None:
        """Take over a step that the child told."""
        self.state.phase = _PHASES.get(progress.phase, self.state.phase)
        self.state.fraction = min(max(progress.fraction, 0.0), 1.0)
        self.state.message = progress.message
        self.tell()

    async def run(self, lost: Callable[[], None]) -> None:
        """Tell changes until cancelled; calls `lost` if the queue says that the lease is."""
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                held = await self._jobs.progress(self._lease, self.state)
            except DovetailError as exc:  # the next step tells it again
                _log.debug("build.progress_untold key=%s why=%r", self._lease.job.artifact_key, str(exc))
            else:
                self.state.log_tail = ""
                if not held:
                    lost()
            await asyncio.sleep(PROGRESS_S)

    async def follow_log(self, directory: Path) -> None:
        """Tell the end of the log of the task in that directory whenever it grew, until cancelled."""
        told = ""
        while True:
            await asyncio.sleep(LOG_S)
            tail = await asyncio.to_thread(log_tail, directory)
            if tail != told:
                self.state.log_tail = told = tail
                self.tell()
