# SPDX-License-Identifier: Apache-2.0
"""Verifying a directory and a Redis in which something is wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from compiler_svc.collection.damage import Verified
from compiler_svc.collection.index_copies import IndexCopies
from compiler_svc.collection.progress import Progress
from compiler_svc.collection.verify import Verifier, VerifyOrder
from compiler_svc.keys import alias_document, manifest_document, model_document
from compiler_svc.redis_index import RedisIndex
from dovetail.artifact import ChunkRef, FileEntry
from dovetail.digest import sha256_hex
from dovetail.errors import InvalidInputError
from dovetail.pb.v1.registry_pb2 import Model
from dovetail.pb.v1.storage_pb2 import ModelRecord, StoredChunk, StoredFile
from dovetail.store.disk import DiskChunkStore, DiskDocumentStore
from dovetail.store.redis_chunks import RedisChunkStore
from dovetail.store.redis_connection import RedisConnection
from tests.fakes.records import key_of, manifest_of
from tests.fakes.redis_work import publish

GRAPH, ENGINE = b"graph" * 1000, b"engine" * 1000
KEY = key_of("artifact")


@dataclass
class World:
    root: Path
    redis: RedisConnection
    chunks: DiskChunkStore
    hot: RedisChunkStore
    documents: DiskDocumentStore
    index: RedisIndex

    async def verify(self, order: VerifyOrder | None = None) -> Verified:
        verifier = Verifier(self.documents, self.chunks, self.hot, IndexCopies(self.redis))
        return await verifier.verify(order or VerifyOrder(), lambda _: None)

    def file(self, data: bytes) -> Path:
        digest = sha256_hex(data)
        return self.root / "cas" / digest[:2] / digest

    def damage(self, data: bytes, content: bytes) -> None:
        path = self.file(data)
        path.unlink()
        path.write_bytes(content)


@pytest.fixture
async def world(tmp_path: Path, redis: RedisConnection) -> World:
    documents = DiskDocumentStore(tmp_path)
    world = World(
        tmp_path, redis, DiskChunkStore(tmp_path), RedisChunkStore(redis), documents, RedisIndex(redis, documents)
    )
    for data in (GRAPH, ENGINE):
        await world.chunks.put(sha256_hex(data), data)
    listed = [StoredChunk(digest=sha256_hex(GRAPH), size_bytes=len(GRAPH))]
    model = Model(name="digits", model_digest=sha256_hex(GRAPH))
    await world.index.add_model(ModelRecord(model=model, files=[StoredFile(chunks=listed)]))
    await world.index.set_alias("digits", "prod", 1)
    ref = ChunkRef(sha256_hex(ENGINE), len(ENGINE))
    entry = FileEntry("model.onnx", "model", len(ENGINE), sha256_hex(ENGINE), (ref,))
    await publish(redis, documents, replace(manifest_of(KEY), files=(entry,)))
    return world


async def test_a_whole_store_is_read_and_nothing_is_wrong(world: World) -> None:
    found = await world.verify()

    assert (found.chunks, found.bytes, found.lost, found.healed, found.damages) == (2, 11000, 0, 0, [])
    assert found.documents == len(await world.documents.keys(""))


async def test_a_flipped_byte_is_found_and_told_with_its_owner_and_what_to_do(world: World) -> None:
    world.damage(ENGINE, b"\x00" + ENGINE[:-1] + b"!")

    found = await world.verify()

    (damage,) = found.damages
    assert (found.lost, damage.kind, damage.name, damage.what) == (1, "chunk", sha256_hex(ENGINE), "sha256 differs")
    assert [(owner.model, owner.artifact_key) for owner in damage.owners] == [("digits", KEY)]
    assert damage.advice == "build it again: dovetail compile digits --version 1 --recipe ort-fp32"
    assert await world.chunks.missing([sha256_hex(ENGINE)]) == {sha256_hex(ENGINE)}  # so that a build supplies it
    assert [path.name for path in (world.root / "quarantine").glob("??/*")] == [sha256_hex(ENGINE)]


@pytest.mark.parametrize("how", ["flipped", "empty", "gone"])
async def test_a_chunk_that_the_hot_tier_has_is_put_right(world: World, how: str) -> None:
    await world.hot.put(sha256_hex(GRAPH), GRAPH)
    if how == "gone":
        world.file(GRAPH).unlink()
    else:
        world.damage(GRAPH, b"" if how == "empty" else b"\x00" + GRAPH[:-1] + b"!")

    found = await world.verify()

    assert (found.healed, found.lost) == (1, 0)
    assert await world.chunks.get(sha256_hex(GRAPH)) == GRAPH
    assert (await world.verify()).damages == []


async def test_a_missing_chunk_of_a_model_is_lost_and_of_nobody_is_not(world: World) -> None:
    await world.chunks.put(sha256_hex(b"nobody's"), b"nobody's")
    world.damage(b"nobody's", b"\x00wrong")
    world.file(GRAPH).unlink()

    found = await world.verify()

    assert {damage.name: damage.lost for damage in found.damages} == {
        sha256_hex(GRAPH): True,
        sha256_hex(b"nobody's"): False,
    }
    assert found.lost == 1
    assert "push digits again" in next(damage.advice for damage in found.damages if damage.lost)


async def test_damaged_documents_are_put_right_from_the_index_and_kept_aside(world: World) -> None:
    keys = (model_document("digits", 1), manifest_document(KEY), alias_document("digits", "prod"))
    before = {key: await world.documents.get(key) for key in keys}
    for key in keys:
        await world.documents.put(key, b"\xff torn")

    found = await world.verify()

    assert (found.healed, found.lost) == (3, 0)
    assert {key: await world.documents.get(key) for key in keys} == before
    assert await world.documents.get(f"quarantine/{keys[0]}") == b"\xff torn"


async def test_a_document_that_nobody_has_a_copy_of_is_lost_and_moved_aside(world: World) -> None:
    await world.redis.call("FLUSHALL")
    await world.documents.put(manifest_document(KEY), b"\xff torn")

    found = await world.verify()

    assert [(damage.name, damage.lost) for damage in found.damages] == [(manifest_document(KEY), True)]
    assert await world.documents.get(manifest_document(KEY)) is None
    assert (await world.verify()).damages == []  # so that the rest can be collected again


async def test_verifying_goes_on_where_it_was_interrupted_and_takes_samples(world: World) -> None:
    digests = sorted(sha256_hex(data) for data in (GRAPH, ENGINE))
    heard: list[Progress] = []
    verifier = Verifier(world.documents, world.chunks, world.hot, IndexCopies(world.redis))

    rest = await verifier.verify(VerifyOrder(after=digests[0]), heard.append)

    assert rest.chunks == 1
    assert heard[-1].position == digests[1]
    assert (await world.verify(VerifyOrder(sample=0.5))).chunks == 1
    for wrong in ({"sample": 0.0}, {"sample": 1.1}, {"after": "x"}, {"bytes_per_s": -1.0}):
        with pytest.raises(InvalidInputError):
            VerifyOrder(**wrong)  # type: ignore[arg-type]
