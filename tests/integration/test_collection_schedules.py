# SPDX-License-Identifier: Apache-2.0
"""Collection among everything that may happen at once: no chunk that something live names is ever gone.

Each seed is one history: uploads, publishes, rebuilds, deletions, readers, two collectors, crashes, a Redis that comes
back empty, and a clock that runs; between any two steps of any of them the other may go on. After every step the
promise is checked. To see a failing history again, put its number into SEEDS.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from compiler_svc.collection.collector import Collector
from compiler_svc.collection.marks import counts_still
from compiler_svc.collection.pins import Pins
from compiler_svc.collection.right import CollectionRight
from compiler_svc.collection.roots import Root
from compiler_svc.collection.survey import KINDS
from compiler_svc.jobs.base import Lease
from compiler_svc.jobs.redis_jobs import RedisJobQueue
from compiler_svc.keys import Keys
from compiler_svc.lua_scripts import index_script
from compiler_svc.redis_index import RedisIndex
from dovetail.artifact import ChunkRef, FileEntry
from dovetail.clock import ManualClock
from dovetail.digest import sha256_hex
from dovetail.pb.v1.compiler_pb2 import BUILD_PHASE_PUBLISHING
from dovetail.pb.v1.registry_pb2 import Model
from dovetail.pb.v1.storage_pb2 import ModelRecord, StoredChunk, StoredFile
from dovetail.store.base import ChunkStore
from dovetail.store.redis_connection import RedisConnection
from tests.fakes.clocked_redis import scripts_read_the_clock_from_a_key, set_clock
from tests.fakes.records import build_in, job_for, key_of, manifest_of, worker_record
from tests.fakes.staged_store import Actor, Stage, StagedChunks, StagedDocuments

SEEDS = range(9)
ROUNDS = 10
GRACE_S = 100.0
MODELS = ("a", "b")
CONTENTS = [f"content {number}".encode() for number in range(12)]


class History:
    """One seed's world."""

    def __init__(self, seed: int, redis: RedisConnection) -> None:
        self.random = random.Random(seed)
        self.redis = redis
        self.clock = ManualClock()
        self.chunks = StagedChunks(self.clock)
        self.documents = StagedDocuments()
        self.stage = Stage(seed, self.check)
        self.chunks.stage = self.documents.stage = self.stage
        self.index = RedisIndex(redis, self.documents)
        self.jobs = RedisJobQueue(redis, self.documents, lease_s=10 * GRACE_S)
        self.pins = Pins(redis, self.chunks.now_ms, pin_s=100 * GRACE_S)
        self.collected = 0

    # --- the promise

    def check(self) -> None:
        for root in self.roots():
            if counts_still(root, now_ms=self.clock.wall_ms(), grace_ms=round(GRACE_S * 1000), served=set()):
                for name, _ in root.chunks:
                    assert self.chunks.holds(name.hex()), f"{root.document} lost {name.hex()[:12]}"
                    assert self.chunks.in_place(name.hex()), f"{name.hex()[:12]} of {root.document} is in the trash"

    def roots(self) -> list[Root]:
        readers = dict(KINDS)
        return [
            readers[kind](key, data)
            for key, data in self.documents.kept.items()
            if (kind := key.partition("/")[0]) in readers
        ]

    # --- who acts

    async def upload(self, *, pinned: bool) -> None:
        name, picked = self.random.choice(MODELS), self.pick()
        if not pinned:
            await self.store_model(name, picked)
            return
        async with self.pins.held(f"push-{self.random.getrandbits(32)}"):
            await self.store_model(name, picked)

    async def store_model(self, name: str, picked: list[bytes]) -> None:
        await store_all(self.chunks, picked)
        await self.dawdle()
        listed = [StoredChunk(digest=sha256_hex(data), size_bytes=len(data)) for data in picked]
        model = Model(name=name, model_digest=sha256_hex(b"".join(picked)))
        await self.index.add_model(ModelRecord(model=model, files=[StoredFile(name="f", chunks=listed)]))

    async def build(self, *, pinned: bool) -> None:
        models = await self.index.models()
        if not models:
            return
        model = self.random.choice(list(models)).model
        key = key_of(f"{model.name}-{model.version}-{self.random.randrange(2)}")
        await self.jobs.submit(job_for(key, model=model.name, version=model.version), force=True)
        lease = await self.jobs.claim(worker_record(), wait_s=0)
        if lease is None:
            return
        picked = self.pick()
        if pinned:
            async with self.pins.held(f"build-{lease.fence}".lower()):
                await store_all(self.chunks, picked)
                await self.publish(lease, picked)
        else:
            await store_all(self.chunks, picked)
            await self.publish(lease, picked)

    async def publish(self, lease: Lease, picked: list[bytes]) -> None:
        await self.dawdle()
        job = lease.job
        refs = tuple(ChunkRef(sha256_hex(data), len(data)) for data in picked)
        whole = b"".join(picked)
        files = (FileEntry("model.onnx", "model", len(whole), sha256_hex(whole), refs),)
        manifest = replace(manifest_of(job.artifact_key, model=job.model, version=job.version), files=files)
        await self.jobs.publish(lease, manifest.to_bytes(), build_in(BUILD_PHASE_PUBLISHING))

    async def delete(self) -> None:
        models = await self.index.models()
        if models:
            model = self.random.choice(list(models)).model
            await self.index.delete_model(model.name, self.random.choice((0, model.version)))

    async def read(self) -> None:
        published = list(await self.index.manifests())
        if published:
            manifest, _ = self.random.choice(published)
            await self.dawdle()
            for digest in sorted(manifest.chunk_digests()):
                assert await self.chunks.get(digest) is not None, "a reader lost a chunk within the grace"
                assert self.chunks.in_place(digest), "a reader reads from the trash within the grace"

    async def collect(self) -> None:
        collector = Collector(self.index, self.documents, self.chunks, CollectionRight(self.redis), grace_s=GRACE_S)
        await collector.collect()
        self.collected += 1

    async def lose_redis(self) -> None:
        """Redis comes back empty, and who holds a pin renews it some steps later."""
        pins = await self.redis.call("HGETALL", Keys().pins_since)
        await self.redis.call("FLUSHALL")
        await set_clock(self.redis, self.clock.wall_ms())
        for _ in range(3):
            await self.stage.turn()
        for owner, since_ms in pins.items():
            await self.redis.run(index_script("pin"), Keys().prefix, owner, since_ms, round(1e6 * GRACE_S))

    async def late(self, actor: Actor) -> None:
        """Begin some steps after the others."""
        try:
            await self.dawdle()
        except BaseException:
            actor.close()
            raise
        await actor

    async def dawdle(self) -> None:
        """Let others have some steps, as an intake or a build does."""
        for _ in range(self.random.choice((0, 0, 5, 15, 30))):
            await self.stage.turn()

    def pick(self) -> list[bytes]:
        return self.random.sample(CONTENTS, self.random.randint(1, 4))

    # --- time

    async def settle(self) -> None:
        """Nobody acts any more: one collection puts everything right."""
        await self.index.rebuild()
        await self.pass_time(GRACE_S)
        await self.collect()
        for digest in [name.hex() for root in self.roots() for name, _ in root.chunks]:
            assert digest in self.chunks.place, "a collection left something that is named in the trash"

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await set_clock(self.redis, self.clock.wall_ms())

    async def round(self) -> None:
        """Some actors at once; unless all that store are pinned, less than the grace passes meanwhile."""
        long = self.random.random() < 0.4
        makers = [
            *2 * [lambda: self.upload(pinned=long)],
            *3 * [lambda: self.build(pinned=long)],
            *2 * [self.delete],
            *(() if long else 2 * [self.read]),
            self.collect,
        ]
        if self.random.random() < 0.15:
            makers += 3 * [self.lose_redis]
        others = [self.random.choice(makers)() for _ in range(self.random.randint(1, 3))]
        actors = [self.late(actor) for actor in (self.collect(), *others)]
        left_s = GRACE_S * (3.0 if long else 0.9)

        async def between() -> None:
            nonlocal left_s
            step_s = self.random.choice((0.0, 0.0, 0.0, 1.0, GRACE_S / 5))
            if 0 < step_s <= left_s:
                left_s -= step_s
                await self.pass_time(step_s)

        await self.stage.run(actors, crash=0.01, between=between)
        await self.pass_time(self.random.choice((0.0, GRACE_S / 2, 1.1 * GRACE_S)))


async def store_all(chunks: ChunkStore, contents: list[bytes]) -> None:
    """As `dovetail.store.files.store_file` does: ask, then put what is missing."""
    named = {sha256_hex(data): data for data in contents}
    for digest in sorted(await chunks.missing(named)):
        await chunks.put(digest, named[digest])


@pytest.fixture
async def clocked(redis: RedisConnection, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RedisConnection]:
    with scripts_read_the_clock_from_a_key(monkeypatch):
        yield redis


@pytest.mark.parametrize("block", range(3))
async def test_nothing_that_is_named_is_ever_gone(clocked: RedisConnection, block: int) -> None:
    collected = gone = 0
    for seed in list(SEEDS)[block::3]:
        await clocked.call("FLUSHALL")
        history = History(seed, clocked)
        await history.pass_time(0)
        try:
            for _ in range(ROUNDS):
                await history.round()
            await history.settle()
        except AssertionError as exc:
            raise AssertionError(f"seed {seed}: {exc}") from exc
        collected += history.collected
        gone += sum(not history.chunks.holds(sha256_hex(data)) for data in CONTENTS)

    assert collected > 5  # else nothing was tried
    assert gone > 5
