# SPDX-License-Identifier: Apache-2.0
"""What a collection takes and what it leaves, case by case, with the clocks of Redis and of the store in hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from compiler_svc.collection.collector import Collected, Collector
from compiler_svc.collection.pins import Pins
from compiler_svc.collection.right import CollectionRight
from compiler_svc.jobs.redis_jobs import RedisJobQueue
from compiler_svc.keys import manifest_document, model_document
from compiler_svc.redis_index import RedisIndex
from dovetail.artifact import ChunkRef, FileEntry, Manifest
from dovetail.clock import ManualClock
from dovetail.digest import sha256_hex
from dovetail.errors import PreconditionError
from dovetail.pb.v1.compiler_pb2 import BUILD_PHASE_PUBLISHING
from dovetail.pb.v1.fleet_pb2 import Node, Serving
from dovetail.pb.v1.registry_pb2 import Model
from dovetail.pb.v1.storage_pb2 import ModelRecord, PendingPublish, StoredChunk, StoredFile
from dovetail.store.redis_connection import RedisConnection
from tests.fakes.clocked_redis import scripts_read_the_clock_from_a_key, set_clock
from tests.fakes.records import build_in, job_for, key_of, manifest_of, worker_record
from tests.fakes.staged_store import StagedChunks, StagedDocuments

GRACE_S = 100.0
KEY = key_of("artifact")


class World:
    """A store, an index and a collector on clocks that a test turns."""

    def __init__(self, redis: RedisConnection) -> None:
        self.redis = redis
        self.clock = ManualClock()
        self.chunks = StagedChunks(self.clock)
        self.documents = StagedDocuments()
        self.index = RedisIndex(redis, self.documents)
        self.jobs = RedisJobQueue(redis, self.documents, lease_s=10 * GRACE_S)
        self.pins = Pins(redis, self.chunks.now_ms, pin_s=1000 * GRACE_S)

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await set_clock(self.redis, self.clock.wall_ms())

    async def store(self, data: bytes) -> str:
        digest = sha256_hex(data)
        if await self.chunks.missing([digest]):
            await self.chunks.put(digest, data)
        return digest

    async def push(self, *contents: bytes, name: str = "digits") -> int:
        listed = [StoredChunk(digest=await self.store(data), size_bytes=len(data)) for data in contents]
        model = Model(name=name, model_digest=sha256_hex(b"".join(contents)))
        record, _ = await self.index.add_model(ModelRecord(model=model, files=[StoredFile(chunks=listed)]))
        return record.model.version

    async def publish(self, data: bytes, *, key: str = KEY, version: int = 1) -> None:
        await self.store(data)
        await self.jobs.submit(job_for(key, version=version), force=True)
        lease = await self.jobs.claim(worker_record(), wait_s=0)
        assert lease is not None
        manifest = manifest_with(data, key=key, version=version)
        assert await self.jobs.publish(lease, manifest.to_bytes(), build_in(BUILD_PHASE_PUBLISHING))

    async def collect(self, *, dry_run: bool = False) -> Collected:
        right = CollectionRight(self.redis)
        return await Collector(self.index, self.documents, self.chunks, right, grace_s=GRACE_S).collect(dry_run=dry_run)

    async def collect_for_good(self) -> None:
        """Trash, wait, purge."""
        await self.collect()
        await self.pass_time(1.1 * GRACE_S)
        await self.collect()

    def places(self, data: bytes) -> str:
        digest = sha256_hex(data)
        return "place" if digest in self.chunks.place else "trash" if digest in self.chunks.bin else "gone"


def manifest_with(data: bytes, *, key: str = KEY, version: int = 1) -> Manifest:
    files = (FileEntry("model.onnx", "model", len(data), sha256_hex(data), (ChunkRef(sha256_hex(data), len(data)),)),)
    return replace(manifest_of(key, version=version), files=files)


@pytest.fixture
async def world(redis: RedisConnection, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    with scripts_read_the_clock_from_a_key(monkeypatch):
        world = World(redis)
        await world.pass_time(0)
        await world.index.rebuild()
        await world.pass_time(2 * GRACE_S)
        yield world


# --- what goes


async def test_what_nothing_names_goes_to_the_trash_after_the_grace_and_for_good_after_another(world: World) -> None:
    await world.store(b"left over")
    assert (await world.collect()).swept.kept_young.chunks == 1

    await world.pass_time(1.1 * GRACE_S)
    done = await world.collect()
    assert (done.swept.trashed.chunks, done.swept.trashed.bytes, world.places(b"left over")) == (1, 9, "trash")

    assert (await world.collect()).swept.waiting.chunks == 1
    await world.pass_time(1.1 * GRACE_S)
    assert (await world.collect()).swept.purged.bytes == 9
    assert world.places(b"left over") == "gone"


async def test_a_dry_run_says_what_would_go_and_changes_nothing(world: World) -> None:
    await world.push(b"kept")
    await world.store(b"left over")
    await world.pass_time(1.1 * GRACE_S)

    done = await world.collect(dry_run=True)

    assert (done.dry_run, done.swept.trashed.chunks) == (True, 1)
    assert (world.places(b"kept"), world.places(b"left over")) == ("place", "place")


async def test_a_deleted_model_frees_its_files_at_once_and_its_artifacts_after_the_grace(world: World) -> None:
    version = await world.push(b"graph")
    await world.publish(b"engine", version=version)
    await world.pass_time(1.1 * GRACE_S)
    await world.index.delete_model("digits")

    first = await world.collect()
    assert (first.retired_kept, world.places(b"graph"), world.places(b"engine")) == (1, "trash", "place")

    await world.pass_time(1.1 * GRACE_S)
    second = await world.collect()
    assert (second.retired_dropped, world.places(b"engine")) == (1, "trash")
    assert await world.documents.keys("retired/") == []


# --- what stays


async def test_what_models_artifacts_and_pending_publishes_name_stays_for_ever(world: World) -> None:
    version = await world.push(b"graph")
    await world.publish(b"engine", version=version)
    await world.store(b"pending")
    pending = PendingPublish(manifest=manifest_with(b"pending", key=key_of("other")).to_bytes())
    await world.documents.put(f"publishing/{key_of('other')}/1.a", pending.SerializeToString())
    await world.pass_time(50 * GRACE_S)

    await world.collect_for_good()

    assert [world.places(data) for data in (b"graph", b"engine", b"pending")] == 3 * ["place"]


async def test_the_manifest_that_a_rebuild_replaced_counts_for_the_grace(world: World) -> None:
    await world.push(b"graph")
    await world.publish(b"engine of before")
    await world.pass_time(1.1 * GRACE_S)
    await world.publish(b"engine of now")

    await world.collect()
    assert world.places(b"engine of before") == "place"

    await world.pass_time(1.1 * GRACE_S)
    await world.collect()
    assert (world.places(b"engine of before"), world.places(b"engine of now")) == ("trash", "place")


async def test_what_an_upload_was_told_to_be_there_stays_for_the_grace(world: World) -> None:
    await world.store(b"shared")
    await world.pass_time(1.1 * GRACE_S)
    assert await world.chunks.missing([sha256_hex(b"shared")]) == set()

    await world.collect()

    assert world.places(b"shared") == "place"
    await world.pass_time(0.9 * GRACE_S)
    await world.push(b"shared")
    await world.collect_for_good()
    assert world.places(b"shared") == "place"


async def test_an_upload_has_back_what_is_in_the_trash_already(world: World) -> None:
    await world.store(b"shared")
    await world.pass_time(1.1 * GRACE_S)
    await world.collect()
    assert world.places(b"shared") == "trash"

    await world.push(b"shared")
    await world.pass_time(1.1 * GRACE_S)
    await world.collect()

    assert world.places(b"shared") == "place"


async def test_a_pin_keeps_what_was_stored_since_it_began_and_nothing_older(world: World) -> None:
    await world.store(b"before")
    await world.pass_time(GRACE_S)
    async with world.pins.held("push-1"):
        await world.store(b"stored under the pin")
        await world.pass_time(5 * GRACE_S)
        await world.collect()
        assert (world.places(b"before"), world.places(b"stored under the pin")) == ("trash", "place")

    await world.collect()
    assert world.places(b"stored under the pin") == "trash"


async def test_a_pin_whose_owner_died_ends_by_itself(world: World) -> None:
    pins = Pins(world.redis, world.chunks.now_ms, pin_s=2 * GRACE_S)
    holding = asyncio.ensure_future(_hold(pins))
    await world.store(b"stored")
    await asyncio.sleep(0)
    while not await world.redis.call("ZCARD", "{dovetail}:pins"):
        await asyncio.sleep(0)
    await world.pass_time(1.5 * GRACE_S)
    await world.collect()
    assert world.places(b"stored") == "place"

    await world.pass_time(GRACE_S)
    await world.collect()

    assert world.places(b"stored") == "trash"
    holding.cancel()
    await asyncio.gather(holding, return_exceptions=True)


async def _hold(pins: Pins) -> None:
    async with pins.held("dead"):
        await asyncio.Event().wait()


async def test_an_artifact_that_a_live_node_serves_counts_as_long_as_it_says_so(world: World) -> None:
    await world.push(b"graph")
    await world.publish(b"engine")
    await world.index.delete_model("digits")
    node = Node(id="edge-1", role="edge", serving=[Serving(model="digits", version=1, artifact_key=KEY)])
    await world.pass_time(5 * GRACE_S)
    await world.index.report_node(node)

    assert (await world.collect()).retired_kept == 1
    assert world.places(b"engine") == "place"

    await world.pass_time(1.1 * GRACE_S)  # the node is silent for longer than the grace
    assert (await world.collect()).retired_dropped == 1


# --- when nothing is collected


async def test_nothing_is_collected_before_the_index_is_older_than_the_grace(world: World) -> None:
    await world.store(b"left over")
    await world.pass_time(2 * GRACE_S)
    await world.redis.call("FLUSHALL")
    await world.pass_time(0)

    with pytest.raises(PreconditionError, match="the index is empty, and nothing is collected"):
        await world.collect()
    await world.index.rebuild()
    await world.pass_time(0.5 * GRACE_S)
    with pytest.raises(PreconditionError, match="was filled 50 s ago, and nothing is collected before it is 100 s old"):
        await world.collect()
    await world.pass_time(0.6 * GRACE_S)

    assert (await world.collect()).swept.trashed.chunks == 1


@pytest.mark.parametrize("document", [manifest_document(KEY), model_document("digits", 1), f"retired/{KEY}/{KEY}"])
async def test_a_document_that_cannot_be_read_stops_collecting(world: World, document: str) -> None:
    await world.store(b"whose is it?")
    await world.pass_time(2 * GRACE_S)
    await world.documents.put(document, b"\xff\xff")

    with pytest.raises(PreconditionError, match=r"what 1 documents need: .*store verify"):
        await world.collect()

    assert world.places(b"whose is it?") == "place"


async def test_one_collector_at_a_time(world: World) -> None:
    right = CollectionRight(world.redis)
    async with right.held():
        with pytest.raises(PreconditionError, match="is collecting already"):
            await world.collect()

    await world.collect()


async def test_a_collector_that_is_overtaken_ends(world: World) -> None:
    slow = CollectionRight(world.redis, right_s=GRACE_S)
    async with slow.held():
        await world.pass_time(2 * GRACE_S)
        async with CollectionRight(world.redis).held():
            with pytest.raises(PreconditionError, match="overtaken"):
                await slow.keep()


async def test_a_collection_is_due_a_period_after_the_last_ended(world: World) -> None:
    right = CollectionRight(world.redis)
    assert await right.due(3600.0)

    await world.collect()
    assert not await right.due(3600.0)
    await world.pass_time(3601.0)

    assert await right.due(3600.0)


async def test_a_service_collects_by_itself(world: World) -> None:
    await world.store(b"left over")
    await world.pass_time(2 * GRACE_S)
    right = CollectionRight(world.redis)
    collector = Collector(world.index, world.documents, world.chunks, right, grace_s=GRACE_S)

    running = asyncio.ensure_future(collector.run(0.01))
    async with asyncio.timeout(30):
        while world.places(b"left over") == "place":
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    await collector.run(0.0)  # never, and so at an end


# --- what crashes leave behind


async def test_what_a_deletion_left_that_was_cut_short_is_retired_by_the_collector(world: World) -> None:
    await world.push(b"graph")
    await world.publish(b"engine")
    manifest = world.documents.kept[manifest_document(KEY)]
    await world.pass_time(2 * GRACE_S)
    await world.index.delete_model("digits")
    for document in await world.documents.keys("retired/"):  # as if it had crashed right before it retired
        await world.documents.delete(document)
    await world.documents.put(manifest_document(KEY), manifest)

    await world.collect()
    assert await world.documents.keys("manifests/") == []
    assert len(await world.documents.keys("retired/")) == 1
    assert world.places(b"engine") == "place"

    await world.pass_time(1.1 * GRACE_S)
    await world.collect()
    assert world.places(b"engine") == "trash"


async def test_what_is_named_and_in_the_trash_comes_back(world: World) -> None:
    await world.push(b"graph")
    digest = sha256_hex(b"graph")
    world.chunks.bin[digest] = world.chunks.place.pop(digest)  # a collector died between two looks

    assert (await world.collect()).swept.restored.chunks == 1
    assert world.places(b"graph") == "place"
