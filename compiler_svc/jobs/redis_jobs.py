# SPDX-License-Identifier: Apache-2.0
"""The job queue on Redis: single flight, leases by the server's clock, fences, a typed memory of failures.

Every transition is one script in `compiler_svc/lua`, and every script first does what is due by the clock, so no
process has to run a reaper. Waiting is a blocking read of a stream, never a sleep. How a state is read and how a
build is watched are in `record` and `build_watch`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Collection, Iterable, Sequence

from compiler_svc.jobs.base import Lease, Overview
from compiler_svc.jobs.build_watch import BuildWatch
from compiler_svc.jobs.event_hub import EventHub
from compiler_svc.jobs.job_reader import JobReader
from compiler_svc.jobs.policy import QueuePolicy
from compiler_svc.jobs.publishing import PublishDocuments
from compiler_svc.jobs.record import (
    build_of,
    capabilities_of,
    needs_of,
    queue_of,
    queues_of,
    read_pairs,
    ready_build,
    tools_of,
)
from compiler_svc.keys import Keys, link_document
from compiler_svc.lua_scripts import job_script
from dovetail.artifact import Manifest
from dovetail.digest import check_digest, check_name, sha256_hex
from dovetail.errors import InvalidInputError, NotFoundError, PreconditionError
from dovetail.pb.v1.compiler_pb2 import (
    BUILD_PHASE_BUILDING,
    BUILD_PHASE_PUBLISHING,
    BUILD_PRIORITY_NODE,
    Build,
    BuildEvent,
    BuildFailure,
    BuildPhase,
    BuildPriority,
    Worker,
)
from dovetail.pb.v1.storage_pb2 import BuildJob, WorkerRecord
from dovetail.store.base import DocumentStore
from dovetail.store.redis_connection import MAX_BLOCK_MS, Part, RedisConnection, Reply

MAX_LOG_BYTES = 4096
"""Of a running build's log, as compiler.proto says."""


class RedisJobQueue:
    """`compiler_svc.jobs.base.JobQueue` on Redis, with manifests also in the document store.

    A claim that is not renewed for `lease_s` is given to another worker; renew at a third of it. `policy` should be the
    same in every process that shares the queue.
    """

    def __init__(
        self,
        redis: RedisConnection,
        documents: DocumentStore,
        *,
        keys: Keys | None = None,
        lease_s: float = 60.0,
        policy: QueuePolicy | None = None,
    ) -> None:
        self._redis = redis
        self._documents = documents
        self._keys = keys or Keys()
        self._policy = policy or QueuePolicy()
        self._lease_ms = max(1, round(lease_s * 1000))
        self._hub = EventHub(redis, self._keys, self._policy)
        self._reader = JobReader(redis, self._keys, self._policy)
        self._publishing = PublishDocuments(redis, documents, self._keys)

    async def submit(self, job: BuildJob, *, force: bool = False) -> Build:
        """See `JobQueue.submit`.

        Raises:
            InvalidInputError: The job's key, model or engine is not a proper name.
        """
        check_digest(job.artifact_key, "artifact key")
        check_name(job.model, "model name")
        check_name(job.engine, "engine name")
        known, flat, manifest = await self._run(
            "submit",
            job.artifact_key,
            job.SerializeToString(),
            queue_of(job),
            tools_of(job),
            needs_of(job),
            job.model,
            job.version,
            int(force),
            int(job.priority or BUILD_PRIORITY_NODE),
        )
        build = build_of(job, read_pairs(flat)) if flat else ready_build(manifest)
        owner = BuildJob.FromString(read_pairs(flat)[b"job"]) if flat else build
        if (owner.model, owner.version) != (job.model, job.version):
            # The same content under two names or versions has one artifact; after a rebuild both must find it.
            await self._documents.put(link_document(job.model, job.version, job.artifact_key), b"")
            build.model, build.version = job.model, job.version
        build.cached = bool(known)
        return build

    async def claim(self, worker: WorkerRecord, *, wait_s: float) -> Lease | None:
        """See `JobQueue.claim`; also counts as a heartbeat."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + wait_s
        queues = [queue.encode() for queue in queues_of(worker)]
        while True:
            token = secrets.token_hex(8)
            arguments = (*_registration(worker), self._policy.worker_ttl_ms, self._lease_ms, token)
            taken, second, third = await self._run("claim", *arguments)
            if taken:
                return Lease(BuildJob.FromString(taken), int(second), worker.id, int(third), token)
            if loop.time() >= deadline_s:
                return None
            due_s = loop.time() + (int(third) + 1) / 1000 if int(third) >= 0 else deadline_s
            await self._woken(second.decode(), queues, min(due_s, deadline_s))

    async def renew(self, lease: Lease) -> bool:
        """See `JobQueue.renew`; call it at a third of the lease."""
        return bool(await self._run("renew", *_claim_of(lease), self._lease_ms))

    async def progress(self, lease: Lease, build: Build) -> bool:
        """See `JobQueue.progress`.

        Raises:
            InvalidInputError: The phase is not one of a running build.
        """
        if not BUILD_PHASE_BUILDING <= build.phase <= BUILD_PHASE_PUBLISHING:
            raise InvalidInputError(f"build phase {build.phase} is not one that a worker reports while it builds")
        kept = Build()
        kept.CopyFrom(build)
        kept.ClearField("log_tail")
        log = build.log_tail.encode()[-MAX_LOG_BYTES:]
        return bool(
            await self._run(
                "progress", *_claim_of(lease), int(build.phase), kept.SerializeToString(), build.message, log
            )
        )

    async def publish(self, lease: Lease, manifest: bytes, build: Build, envelope: bytes = b"") -> bool:
        """See `JobQueue.publish`; the chunks must be stored before. Harmless to repeat when the answer was lost.

        Raises:
            InvalidInputError: The manifest is not readable or is another artifact's.
        """
        key, _, fence = _claim_of(lease)
        artifact = Manifest.from_bytes(manifest)
        if artifact.artifact_key != key:
            raise InvalidInputError(f"the manifest to publish is not that of artifact {key[:12]}…")
        counted = sum(file.size_bytes for file in artifact.files)  # for the tenant's quota
        await self._publishing.prepare(key, fence, manifest, envelope)
        told = (build.SerializeToString(), build.message or "published")
        result = (manifest, sha256_hex(manifest), *told, envelope, counted)
        if not await self._run("publish", *_claim_of(lease), *result):
            await self._publishing.withdraw(key, fence)
            return False
        await self._publishing.settle(key, fence, manifest, envelope)
        return True

    async def fail(self, lease: Lease, failure: BuildFailure, build: Build) -> bool:
        """See `JobQueue.fail`."""
        parts = (int(failure.kind), failure.SerializeToString(), build.SerializeToString(), failure.message)
        return bool(await self._run("fail", *_claim_of(lease), *parts))

    async def release(self, lease: Lease) -> bool:
        """See `JobQueue.release`."""
        return bool(await self._run("release", *_claim_of(lease)))

    async def cancel(self, artifact_key: str, *, why: str = "", only_waiting: bool = False) -> Build:
        """See `JobQueue.cancel`; it has ended when this returns, its worker stops at its next renewal."""
        outcome = await self._run("cancel", artifact_key, why or "cancelled on request", int(only_waiting))
        build = await self.get(artifact_key)
        if outcome < 0 or build is None:
            raise NotFoundError(f"there is no build {artifact_key[:12]}…; `dovetail compile` orders one")
        if outcome == 0:
            state = "begun or already ended" if only_waiting else "already ended"
            raise PreconditionError(f"build {artifact_key[:12]}… cannot be cancelled: it has {state}")
        return build

    async def retry(self, artifact_key: str, priority: BuildPriority) -> Build:
        """See `JobQueue.retry`."""
        outcome = await self._run("retry", artifact_key, int(priority))
        build = await self.get(artifact_key)
        if outcome < 0 or build is None:
            raise NotFoundError(f"there is no job {artifact_key[:12]}…; `dovetail jobs` lists them")
        if outcome == 0:
            raise PreconditionError(
                f"job {artifact_key[:12]}… cannot be tried again: it is {BuildPhase.Name(build.phase)[12:].lower()}"
            )
        return build

    async def get(self, artifact_key: str) -> Build | None:
        """See `JobQueue.get`."""
        return await self._reader.get(artifact_key)

    async def list(self, model: str = "", version: int = 0) -> Sequence[Build]:
        """See `JobQueue.list`."""
        return await self._reader.builds(model, version)

    def watch(
        self, artifact_keys: Iterable[str], *, after: str = "", with_log: bool = False
    ) -> AsyncIterator[BuildEvent]:
        """See `JobQueue.watch`; NotFoundError for a key without a build. All watchers share one connection."""
        return BuildWatch(self._hub, artifact_keys, with_log=with_log).events(after)

    async def overview(self, *, dead: bool = False, hardware_class: str = "") -> Overview:
        """See `JobQueue.overview`."""
        return await self._reader.overview(dead=dead, hardware_class=hardware_class)

    async def staff(self) -> Sequence[Worker]:
        """See `JobQueue.staff`."""
        return await self._reader.staff()

    async def heartbeat(self, worker: WorkerRecord) -> None:
        """See `JobQueue.heartbeat`; beat at a third of the policy's `worker_ttl_s`."""
        await self._run("heartbeat", *_registration(worker), self._policy.worker_ttl_ms)

    async def leave(self, worker_id: str) -> None:
        """See `JobQueue.leave`."""
        await self._run("leave", check_name(worker_id, "worker id"))

    async def workers(self) -> Sequence[WorkerRecord]:
        """See `JobQueue.workers`."""
        return await self._reader.workers()

    async def _run(self, name: str, *arguments: Part) -> Reply:
        return await self._redis.run(job_script(name), self._keys.prefix, *self._policy.arguments(), *arguments)

    async def _woken(self, position: str, queues: Collection[bytes], deadline_s: float) -> None:
        """Wait until a job begins to wait in one of the queues, but not beyond the deadline."""
        loop = asyncio.get_running_loop()
        while (left_ms := int((deadline_s - loop.time()) * 1000)) > 0:
            reply = await self._redis.call(
                "XREAD", "COUNT", 100, "BLOCK", min(left_ms, MAX_BLOCK_MS), "STREAMS", self._keys.wake, position
            )
            entries = reply[0][1] if reply else []
            if any(fields[b"q"] in queues for _, fields in entries):
                return
            position = entries[-1][0].decode() if entries else position


def _registration(worker: WorkerRecord) -> tuple[str, bytes, bytes]:
    return check_name(worker.id, "worker id"), worker.SerializeToString(), capabilities_of(worker)


def _claim_of(lease: Lease) -> tuple[str, str, str]:
    return lease.job.artifact_key, lease.worker, f"{lease.fence}.{lease.token}"
