# SPDX-License-Identifier: Apache-2.0
"""What a worker and a watcher do with a job queue, in a word each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from compiler_svc.jobs.base import JobQueue, Lease
from dovetail.pb.v1.compiler_pb2 import BUILD_PHASE_PUBLISHING, BuildEvent
from tests.fakes.records import build_in, manifest_of, worker_record

WAIT_S = 20.0
"""Far more than needed; what waits for something returns as soon as it is there."""


async def claimed(queue: JobQueue, worker_id: str = "w1", *, wait_s: float = 0) -> Lease:
    """The next job, which must be there."""
    lease = await queue.claim(worker_record(worker_id), wait_s=wait_s)
    assert lease is not None
    return lease


async def published(queue: JobQueue, lease: Lease, *, label: str = "", envelope: bytes = b"") -> bool:
    """Publish a tiny manifest; `label` tells two of one key apart."""
    manifest = manifest_of(lease.job.artifact_key, version=lease.job.version, label=label)
    return await queue.publish(lease, manifest.to_bytes(), build_in(BUILD_PHASE_PUBLISHING, "published"), envelope)


async def watched(events: AsyncIterator[BuildEvent]) -> list[BuildEvent]:
    """All events to the end."""
    async with asyncio.timeout(WAIT_S):
        return [event async for event in events]


def phases(events: list[BuildEvent]) -> list[int]:
    """Their phases."""
    return [event.build.phase for event in events]
