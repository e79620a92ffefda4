# SPDX-License-Identifier: Apache-2.0
"""A worker's part on the real job queue, without building anything."""

from __future__ import annotations

from collections.abc import Iterable

from compiler_svc.jobs.redis_jobs import RedisJobQueue
from dovetail.artifact import Manifest
from dovetail.pb.v1.compiler_pb2 import BUILD_PHASE_PUBLISHING
from dovetail.pb.v1.storage_pb2 import BuildJob
from dovetail.store.base import DocumentStore
from dovetail.store.redis_connection import RedisConnection
from tests.fakes.records import build_in, job_for, worker_record


async def publish(
    redis: RedisConnection, documents: DocumentStore, manifest: Manifest, *, extra: Iterable[BuildJob] = ()
) -> None:
    """Order, claim and publish an artifact; `extra` are orders of the same key that attach to it."""
    queue = RedisJobQueue(redis, documents)
    await queue.submit(job_for(manifest.artifact_key, model=manifest.model, version=manifest.version))
    for job in extra:
        await queue.submit(job)
    lease = await queue.claim(worker_record(), wait_s=0)
    assert lease is not None
    assert lease.job.artifact_key == manifest.artifact_key
    assert await queue.publish(lease, manifest.to_bytes(), build_in(BUILD_PHASE_PUBLISHING))
