# SPDX-License-Identifier: Apache-2.0
"""The job queue on Redis: single flight, leases by the server's clock, fences, a typed memory of failures.

Every transition is one script in `compiler_svc/lua`, and every script first does what is due by the clock, so no
process has to run a reaper. Waiting is a blocking read of a stream, never a sleep. How a state is read and how a
build is watched are in `record` and `build_watch`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence

from compiler_svc.jobs.base import Lease
from compiler_svc.jobs.build_watch import BuildWatch
from compiler_svc.jobs.policy import QueuePolicy
from compiler_svc.jobs.record import (
    build_of,
    capabilities_of,
    needs_of,
    queue_of,
    read_pairs,
    read_state,
    ready_build,
    tools_of,
)
from compiler_svc.keys import Keys, link_document, manifest_document
from compiler_svc.lua_scripts import job_script
from dovetail.artifact import Manifest
from dovetail.digest import check_digest, check_name, sha256_hex
from dovetail.errors import InvalidInputError, NotFoundError, PreconditionError
from dovetail.pb.v1.compiler_pb2 import BUILD_PHASE_BUILDING, BUILD_PHASE_PUBLISHING, Build, BuildEvent, BuildFailure
from dovetail.pb.v1.storage_pb2 import BuildJob, WorkerRecord
from dovetail.store.base import DocumentStore
from dovetail.store.redis_connection import MAX_BLOCK_MS, Part, RedisConnection, Reply

_PAGE = 200  # builds read in one step: short enough not to hold up others
_log = logging.getLogger(__name__)


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
        arguments = (*_registration(worker), self._policy.worker_ttl_ms, self._lease_ms)
        while True:
            taken, second, third = await self._run("claim", *arguments)
            if taken:
                return Lease(BuildJob.FromString(taken), int(second), worker.id, int(third))
            remaining_ms = int((deadline_s - loop.time()) * 1000)
            if remaining_ms <= 0:
                return None
            next_lease_ms = int(third) if int(third) >= 0 else MAX_BLOCK_MS
            block_ms = max(1, min(remaining_ms, next_lease_ms + 1, MAX_BLOCK_MS))
            await self._redis.call("XREAD", "COUNT", 1, "BLOCK", block_ms, "STREAMS", self._keys.wake, second)

    async def renew(self, lease: Lease) -> bool:
        """See `JobQueue.renew`; call it at a third of the lease."""
        return bool(await self._run("renew", *_claim_of(lease), self._lease_ms))

    async def progress(self, lease: Lease, build: Build) -> None:
        """See `JobQueue.progress`.

        Raises:
            InvalidInputError: The phase is not one of a running build.
        """
        if not BUILD_PHASE_BUILDING <= build.phase <= BUILD_PHASE_PUBLISHING:
            raise InvalidInputError(f"build phase {build.phase} is not one that a worker reports while it builds")
        await self._run("progress", *_claim_of(lease), int(build.phase), build.SerializeToString(), build.message)

    async def publish(self, lease: Lease, manifest: bytes, build: Build) -> bool:
        """See `JobQueue.publish`; the chunks must be stored before.

        Raises:
            InvalidInputError: The manifest is not readable or is another artifact's.
        """
        key = lease.job.artifact_key
        if Manifest.from_bytes(manifest).artifact_key != key:
            raise InvalidInputError(f"the manifest to publish is not that of artifact {key[:12]}…")
        if not await self.renew(lease):  # so that a late worker does not overwrite the winner's document
            return False
        previous = await self._documents.get(manifest_document(key))  # there is one if this build was forced
        await self._documents.put(manifest_document(key), manifest)
        digest = sha256_hex(manifest)
        message = build.message or "published"
        if await self._run("publish", *_claim_of(lease), manifest, digest, build.SerializeToString(), message):
            return True
        await self._restore_document(key, previous)
        return False

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

    async def get(self, artifact_key: str) -> Build | None:
        """See `JobQueue.get`."""
        return (await self._builds([artifact_key]))[0]

    async def list(self, model: str = "", version: int = 0) -> Sequence[Build]:
        """See `JobQueue.list`."""
        builds = await (self._of_model(model, version) if model else self._all())
        return sorted(builds, key=lambda build: (-build.created_at_ms, build.artifact_key))

    def watch(self, artifact_keys: Iterable[str], *, after: str = "") -> AsyncIterator[BuildEvent]:
        """See `JobQueue.watch`; NotFoundError for a key without a build."""
        return BuildWatch(self._redis, self._keys, self._policy, artifact_keys).events(after)

    async def heartbeat(self, worker: WorkerRecord) -> None:
        """See `JobQueue.heartbeat`; beat at a third of the policy's `worker_ttl_s`."""
        await self._run("heartbeat", *_registration(worker), self._policy.worker_ttl_ms)

    async def workers(self) -> Sequence[WorkerRecord]:
        """See `JobQueue.workers`."""
        flat = await self._run("workers")
        found = []
        for record, until_ms in zip(flat[::2], flat[1::2], strict=True):
            worker = WorkerRecord.FromString(record)
            worker.last_seen_ms = int(until_ms) - self._policy.worker_ttl_ms
            found.append(worker)
        return sorted(found, key=lambda worker: worker.id)

    async def _run(self, name: str, *arguments: Part) -> Reply:
        return await self._redis.run(job_script(name), self._keys.prefix, *self._policy.arguments(), *arguments)

    async def _builds(self, artifact_keys: Sequence[str]) -> Sequence[Build | None]:
        builds = []
        for start in range(0, len(artifact_keys), _PAGE):
            _, *entries = await self._run("snapshot", *artifact_keys[start : start + _PAGE])
            for entry in entries:
                found = read_state(entry)
                builds.append(build_of(*found) if isinstance(found, tuple) else found)
        return builds

    async def _all(self) -> Sequence[Build]:
        ordered, published = await self._redis.call_all(
            [("ZRANGE", self._keys.jobs, 0, -1), ("HKEYS", self._keys.digests)]
        )
        keys = sorted({key.decode() for key in (*ordered, *published)})
        return [build for build in await self._builds(keys) if build is not None]

    async def _of_model(self, model: str, version: int) -> Sequence[Build]:
        members = await self._redis.call("HKEYS", self._keys.artifacts(check_name(model, "model name")))
        links = [(int(number), key) for number, _, key in (member.decode().partition("/") for member in members)]
        wanted = [link for link in links if version in (0, link[0])]
        builds = []
        for (number, _), build in zip(wanted, await self._builds([key for _, key in wanted]), strict=True):
            if build is not None:
                build.model, build.version = model, number
                builds.append(build)
        return builds

    async def _restore_document(self, artifact_key: str, previous: bytes | None) -> None:
        """Undo the document of a publish that was refused between the check and the script."""
        winner = await self._redis.call("GET", self._keys.manifest(artifact_key)) or previous
        _log.warning("build.publish_refused key=%s kept=%s", artifact_key, winner is not None)
        if winner is None:
            await self._documents.delete(manifest_document(artifact_key))
        else:
            await self._documents.put(manifest_document(artifact_key), winner)


def _registration(worker: WorkerRecord) -> tuple[str, bytes, bytes]:
    return check_name(worker.id, "worker id"), worker.SerializeToString(), capabilities_of(worker)


def _claim_of(lease: Lease) -> tuple[str, str, int]:
    return lease.job.artifact_key, lease.worker, lease.fence
