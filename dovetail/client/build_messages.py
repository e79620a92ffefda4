# SPDX-License-Identifier: Apache-2.0
"""Between the messages about the queue and the SDK's values for them; builds themselves are in `messages`."""

from __future__ import annotations

from dovetail.client.build_results import Attempt, BuildPriority, Job, JobList, JobWait, Worker
from dovetail.client.messages import read_build
from dovetail.pb.v1 import compiler_pb2 as pb

_PRIORITIES = {
    BuildPriority.INTERACTIVE: pb.BUILD_PRIORITY_INTERACTIVE,
    BuildPriority.NODE: pb.BUILD_PRIORITY_NODE,
    BuildPriority.BACKGROUND: pb.BUILD_PRIORITY_BACKGROUND,
}
_PRIORITY_OF = {number: priority for priority, number in _PRIORITIES.items()}
_WAITS = {
    pb.JOB_WAIT_NO_WORKER: JobWait.NO_WORKER,
    pb.JOB_WAIT_WORKERS_BUSY: JobWait.WORKERS_BUSY,
    pb.JOB_WAIT_BACK_OFF: JobWait.BACK_OFF,
    pb.JOB_WAIT_IN_LINE: JobWait.IN_LINE,
}


def priority_message(priority: BuildPriority) -> pb.BuildPriority:
    """A priority on the wire."""
    return _PRIORITIES[priority]


def read_jobs(message: pb.ListJobsResponse) -> JobList:
    """The queue; a priority or reason to wait that a newer service has is shown as none, its text says the rest."""
    return JobList(tuple(_job(item) for item in message.jobs), message.total, message.now_ms)


def read_worker(message: pb.Worker) -> Worker:
    """A live worker."""
    return Worker(
        id=message.id,
        hardware_class=message.hardware_class,
        engines=tuple(message.engines),
        toolchain=dict(message.toolchain),
        emulates=tuple(message.emulates),
        concurrency=message.concurrency,
        draining=message.draining,
        silent_ms=max(0, message.now_ms - message.last_seen_ms),
        builds=tuple(read_build(item) for item in message.builds),
    )


def _job(message: pb.Job) -> Job:
    return Job(
        build=read_build(message.build),
        priority=_PRIORITY_OF.get(message.build.priority),
        worker=message.worker,
        wait=_WAITS.get(message.wait, JobWait.NONE),
        why=message.why,
        able_workers=tuple(message.able_workers),
        not_before_ms=message.not_before_ms,
        attempts=tuple(Attempt(item.worker, item.began_ms, item.ended_ms, item.why) for item in message.attempts),
    )
