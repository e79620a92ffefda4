# SPDX-License-Identifier: Apache-2.0
"""Store and job queue against a model of a few lines: hypothesis looks for an order of calls after which they differ.

The calls are the public ones, on a real Redis and a real directory. Leases end by Redis' clock: a lease is made to end
by renewing it for a millisecond and waiting until that clock has moved. "Redis comes back empty" is a rule like any
other.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from hypothesis.strategies import DataObject, booleans, data, integers, sampled_from

from compiler_svc.jobs.base import Lease
from compiler_svc.jobs.policy import QueuePolicy
from compiler_svc.jobs.redis_jobs import RedisJobQueue
from compiler_svc.keys import Keys, manifest_document
from compiler_svc.redis_index import RedisIndex
from dovetail.digest import sha256_hex
from dovetail.errors import NotFoundError, PreconditionError
from dovetail.pb.v1 import compiler_pb2 as pb
from dovetail.store.disk import DiskChunkStore, DiskDocumentStore
from dovetail.store.redis_chunks import RedisChunkStore
from dovetail.store.redis_connection import connect
from dovetail.store.tiered import TieredChunkStore
from dovetail.store.verified import VerifiedChunkStore
from tests.fakes.records import build_in, failure_of, job_for, key_of, manifest_of, model_record, worker_record
from tests.fixtures_redis import RedisServer

KEYS = tuple(key_of(name) for name in "abc")
WAITING, RUNNING = (pb.BUILD_PHASE_QUEUED, pb.BUILD_PHASE_UNROUTED), (pb.BUILD_PHASE_BUILDING, pb.BUILD_PHASE_GATING)
DETERMINISTIC, RESOURCE = pb.BUILD_FAILURE_KIND_DETERMINISTIC, pb.BUILD_FAILURE_KIND_RESOURCE
LONG_S, SHORT_S = 3600.0, 0.001
ATTEMPTS = 3
_T = TypeVar("_T")


@dataclass
class Known:
    """What a build must be.

    Attributes:
        state: "absent", "waiting", "running", "ready", "failed", "stuck" (it failed for good) or "cancelled".
        attempts: Claims since it was ordered.
        lease: The one that counts.
        published: The manifest that everybody must see.
    """

    state: str = "absent"
    attempts: int = 0
    lease: Lease | None = None
    published: bytes | None = None


@dataclass
class Held:
    """A lease that some worker believes in, and how it ended the build if it did.

    A worker whose answer was lost says the same again; that may be answered either way and changes nothing.
    """

    lease: Lease
    ended: str = ""
    manifest: bytes = b""


class StoreAndJobs(RuleBasedStateMachine):
    """One queue, one index and one store; workers that hold leases, also old ones."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(prefix="dt-machine-"))
        self.redis = connect(url)
        self.documents = DiskDocumentStore(self.folder, min_free_bytes=0)
        policy = QueuePolicy(worker_ttl_s=LONG_S, max_attempts=ATTEMPTS, retry_after_s=0.0)
        self.queue = RedisJobQueue(self.redis, self.documents, lease_s=LONG_S, policy=policy)
        self.hasty = RedisJobQueue(self.redis, self.documents, lease_s=SHORT_S, policy=policy)
        self.index = RedisIndex(self.redis, self.documents)
        durable = VerifiedChunkStore(DiskChunkStore(self.folder, min_free_bytes=0), name="disk")
        self.chunks = TieredChunkStore(VerifiedChunkStore(RedisChunkStore(self.redis), name="redis"), durable)
        self.known = {key: Known() for key in KEYS}
        self.held: list[Held] = []
        self.stored: dict[str, bytes] = {}
        self.fences: list[int] = []
        self.made = 0

    def wait(self, call: Coroutine[Any, Any, _T]) -> _T:
        return self.loop.run_until_complete(asyncio.wait_for(call, 30))

    @initialize()
    def begin(self) -> None:
        self.wait(self.redis.call("FLUSHALL"))  # type: ignore[arg-type]
        self.wait(self.index.add_model(model_record()))

    def teardown(self) -> None:
        try:
            self.drain()
        finally:
            self.wait(self.redis.aclose())
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    # --- orders

    @rule(key=sampled_from(KEYS), force=booleans())
    def submit(self, key: str, force: bool) -> None:
        build = self.wait(self.queue.submit(job_for(key), force=force))

        known = self.known[key]
        if known.state in ("waiting", "running"):
            assert not build.cached
        elif known.state in ("ready", "stuck") and not force:
            assert build.cached
        elif known.state == "absent" and known.published and not force:
            assert (build.cached, build.phase) == (True, pb.BUILD_PHASE_READY)
        else:
            known.state, known.attempts = "waiting", 0
            assert not build.cached
            assert build.phase in WAITING

    @rule(key=sampled_from(KEYS))
    def cancel(self, key: str) -> None:
        known = self.known[key]
        if known.state in ("waiting", "running"):
            assert self.wait(self.queue.cancel(key)).phase == pb.BUILD_PHASE_CANCELLED
            known.state, known.lease = "cancelled", None
        else:
            unknown = known.state == "absent" and not known.published
            with pytest.raises(NotFoundError if unknown else PreconditionError):
                self.wait(self.queue.cancel(key))

    # --- workers

    @rule(number=integers(1, 3))
    def claim(self, number: int) -> None:
        lease = self.wait(self.queue.claim(worker_record(f"w{number}"), wait_s=0))

        waiting = [key for key, known in self.known.items() if known.state == "waiting"]
        assert (lease is None) == (not waiting)
        if lease is None:
            return
        known = self.known[lease.job.artifact_key]
        assert lease.job.artifact_key in waiting
        assert lease.attempt == known.attempts + 1
        assert not self.fences or lease.fence > self.fences[-1]
        self.fences.append(lease.fence)
        known.state, known.attempts, known.lease = "running", lease.attempt, lease
        self.held.append(Held(lease))

    @rule(choice=data())
    def renew(self, choice: DataObject) -> None:
        if held := self._some(choice):
            assert self.wait(self.queue.renew(held.lease)) == self._holds(held)

    @rule(choice=data())
    def progress(self, choice: DataObject) -> None:
        if held := self._some(choice):
            self.wait(self.queue.progress(held.lease, build_in(pb.BUILD_PHASE_GATING, "half way")))
            build = self.wait(self.queue.get(held.lease.job.artifact_key))
            assert not self._holds(held) or (build is not None and build.phase == pb.BUILD_PHASE_GATING)

    @rule(choice=data())
    def publish(self, choice: DataObject) -> None:
        if not (held := self._some(choice)):
            return
        key, known = held.lease.job.artifact_key, self.known[held.lease.job.artifact_key]
        if not held.manifest:
            self.made += 1
            held.manifest = manifest_of(key, label=f"{self.made}").to_bytes()
            self._store(f"content {self.made}".encode())
        accepted = self.wait(self.queue.publish(held.lease, held.manifest, build_in(pb.BUILD_PHASE_PUBLISHING)))

        assert accepted == self._holds(held) or held.ended == "published"
        if self._holds(held):
            known.state, known.lease, known.published = "ready", None, held.manifest
            held.ended = "published"

    @rule(choice=data(), kind=sampled_from((DETERMINISTIC, RESOURCE)))
    def fail(self, choice: DataObject, kind: int) -> None:
        if held := self._some(choice):
            known = self.known[held.lease.job.artifact_key]
            accepted = self.wait(self.queue.fail(held.lease, failure_of(kind), pb.Build()))
            assert accepted == self._holds(held) or held.ended == "failed"
            if self._holds(held):
                known.state, known.lease = "stuck" if kind == DETERMINISTIC else "failed", None
                held.ended = "failed"

    @rule(choice=data())
    def release(self, choice: DataObject) -> None:
        if held := self._some(choice):
            known = self.known[held.lease.job.artifact_key]
            accepted = self.wait(self.queue.release(held.lease))
            assert accepted == self._holds(held)
            if accepted:
                known.state, known.lease, known.attempts = "waiting", None, known.attempts - 1

    @rule(choice=data())
    def expire(self, choice: DataObject) -> None:
        """The worker is silent until its lease is over."""
        if held := self._some(choice):
            known = self.known[held.lease.job.artifact_key]
            if not self._holds(held):
                return
            assert self.wait(self.hasty.renew(held.lease))
            self.wait(self._clock_moves())
            self.wait(self.queue.workers())  # any call does what is due by the clock
            known.state = "failed" if known.attempts >= ATTEMPTS else "waiting"
            known.lease = None

    # --- losses

    @rule()
    def redis_comes_back_empty(self) -> None:
        self.wait(self.redis.call("FLUSHALL"))  # type: ignore[arg-type]
        for known in self.known.values():
            known.state, known.lease, known.attempts = "absent", None, 0

    @rule()
    def rebuild(self) -> None:
        self.wait(self.index.rebuild())

    # --- what always holds

    @invariant()
    def published_is_readable(self) -> None:
        for key, known in self.known.items():
            if known.published is not None:
                assert self.wait(self.index.manifest(key)) == known.published
                assert self.wait(self.documents.get(manifest_document(key))) == known.published
        for digest, content in self.stored.items():
            assert self.wait(self.chunks.get(digest)) == content

    @invariant()
    def nothing_is_ready_without_a_manifest(self) -> None:
        for key, known in self.known.items():
            if known.published is None:
                with pytest.raises(NotFoundError):
                    self.wait(self.index.manifest(key))

    @invariant()
    def state_is_what_it_must_be(self) -> None:
        for key, known in self.known.items():
            build = self.wait(self.queue.get(key))
            if known.state == "absent" and not known.published:
                assert build is None
                continue
            assert build is not None
            expected = {
                "absent": (pb.BUILD_PHASE_READY,), "waiting": WAITING, "running": RUNNING,
                "ready": (pb.BUILD_PHASE_READY,), "failed": (pb.BUILD_PHASE_FAILED,),
                "stuck": (pb.BUILD_PHASE_FAILED,), "cancelled": (pb.BUILD_PHASE_CANCELLED,),
            }[known.state]  # fmt: skip
            assert build.phase in expected, (known, build)

    @invariant()
    def each_job_is_in_one_place(self) -> None:
        """Waiting jobs are in a queue and have no lease, running ones the other way round, others are in neither."""
        prefix = Keys().prefix
        queues = self.wait(self._keys(f"{prefix}q:*"))
        queued = [key for queue in queues for key in self.wait(self._members(queue))]
        leased = self.wait(self._members(f"{prefix}leases"))
        assert sorted(queued) == sorted(key for key, known in self.known.items() if known.state == "waiting")
        assert sorted(leased) == sorted(key for key, known in self.known.items() if known.state == "running")

    def drain(self) -> None:
        """With an able worker nothing waits for ever."""
        for known in self.known.values():
            if known.lease is not None:
                self.wait(self.queue.release(known.lease))
        while (lease := self.wait(self.queue.claim(worker_record("last"), wait_s=0))) is not None:
            manifest = manifest_of(lease.job.artifact_key).to_bytes()
            assert self.wait(self.queue.publish(lease, manifest, build_in(pb.BUILD_PHASE_PUBLISHING)))
        for key in KEYS:
            build = self.wait(self.queue.get(key))
            assert build is None or build.phase not in (*WAITING, *RUNNING)

    # --- inside

    def _some(self, choice: DataObject) -> Held | None:
        return choice.draw(sampled_from(self.held), label="lease") if self.held else None

    def _holds(self, held: Held) -> bool:
        return self.known[held.lease.job.artifact_key].lease is held.lease

    def _store(self, content: bytes) -> None:
        digest = sha256_hex(content)
        self.wait(self.chunks.put(digest, content))
        self.stored[digest] = content

    async def _clock_moves(self) -> None:
        began = await self.redis.call("TIME")
        while (now := await self.redis.call("TIME")) and _ms(now) - _ms(began) < 1000 * SHORT_S + 2:
            await asyncio.sleep(0.001)

    async def _keys(self, pattern: str) -> list[str]:
        return [key.decode() for key in await self.redis.call("KEYS", pattern)]

    async def _members(self, key: str) -> list[str]:
        return [member.decode() for member in await self.redis.call("ZRANGE", key, 0, -1)]


def _ms(time: Any) -> float:
    return int(time[0]) * 1000 + int(time[1]) / 1000


def test_store_and_jobs_agree_with_their_model_after_any_order_of_calls(redis_server: RedisServer) -> None:
    chosen = settings(
        max_examples=25,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    run_state_machine_as_test(lambda: StoreAndJobs(redis_server.url), settings=chosen)
