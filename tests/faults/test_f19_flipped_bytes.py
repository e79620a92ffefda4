# SPDX-License-Identifier: Apache-2.0
"""F19: a byte changes at some tier: in Redis, in the durable directory, in an object store, on the wire, on a site
cache's disk. (A node's own disk is F17.) It is noticed before anything uses it, counted, and fetched again or healed.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc.aio
import pytest

from dovetail.artifact import Manifest
from dovetail.clock import ManualClock
from dovetail.digest import sha256_hex
from dovetail.errors import DovetailError
from dovetail.store.base import ChunkStore
from dovetail.store.disk import DiskChunkStore
from dovetail.store.files import store_file
from dovetail.store.object_address import ObjectAddress
from dovetail.store.object_bucket import open_bucket
from dovetail.store.object_chunks import ObjectChunkStore
from dovetail.store.redis_chunks import RedisChunkStore
from dovetail.store.redis_connection import RedisConnection
from dovetail.store.tiered import TieredChunkStore
from dovetail.store.verified import VerifiedChunkStore
from runtime_svc.acquire.fetch import MAX_BAD_COPIES, ChunkFetcher, FetchSettings
from runtime_svc.acquire.local_cache import LocalCache
from tests.fakes.acquiring_node import NodeMaker, contents, quick
from tests.fakes.answering_artifacts import answering, who_answered
from tests.fakes.cache_site import address_of, cache_site
from tests.fakes.compiler_mesh import compiler_mesh
from tests.fakes.fake_artifact_cache import FakeArtifactCache
from tests.fakes.link import Link
from tests.fakes.tiny_artifacts import manifest_of, random_bytes
from tests.faults.seeds import replayable, seeds
from tests.fixtures_node import publish

CHUNK = 16 * 1024
DATA = random_bytes(50_000)
DIGEST = sha256_hex(DATA)

Flip = Callable[[], Awaitable[None]]


def flip_file(root: Path) -> None:
    """Change one byte in the middle of every stored chunk below a folder."""
    for path in [path for path in root.rglob("*") if path.is_file() and len(path.name) == 64]:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 8
        path.chmod(0o600)
        path.write_bytes(bytes(data))


async def flip_in_redis(redis: RedisConnection, digest: str, place: int) -> None:
    """Change one byte of a chunk as Redis keeps it."""
    (was,) = bytes(await redis.call("GETRANGE", f"c:{digest}", place, place))
    await redis.call("SETRANGE", f"c:{digest}", place, bytes((was ^ 8,)))


@pytest.fixture(params=["directory", "object store"])
async def durable(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ChunkStore, Flip]:
    """A durable tier, and what changes a byte of all that is in it."""
    if request.param == "directory":

        async def flip_on_disk() -> None:
            flip_file(tmp_path)

        return DiskChunkStore(tmp_path, min_free_bytes=0), flip_on_disk
    bucket = open_bucket(ObjectAddress.parse(request.getfixturevalue("s3_url")))

    async def flip_in_bucket() -> None:
        async for entries in bucket.list(""):
            for entry in entries:
                data = bytearray(await bucket.get(entry.name, limit_bytes=1 << 20) or b"")
                data[len(data) // 2] ^= 8
                await bucket.put(entry.name, bytes(data))

    return ObjectChunkStore(bucket), flip_in_bucket


@pytest.mark.parametrize("place", [0, 1, 777, 50_000])
async def test_a_byte_flipped_in_redis_is_served_from_the_durable_tier_and_healed(
    redis: RedisConnection, tmp_path: Path, place: int
) -> None:
    hot = VerifiedChunkStore(RedisChunkStore(redis))
    store = TieredChunkStore(hot, VerifiedChunkStore(DiskChunkStore(tmp_path, min_free_bytes=0)))
    await store.put(DIGEST, DATA)
    await flip_in_redis(redis, DIGEST, place)

    assert await store.get(DIGEST) == DATA

    assert hot.corrupt == 1
    assert await hot.get(DIGEST) == DATA, "the copy in Redis is right again"


async def test_a_byte_flipped_in_the_durable_tier_is_missing_and_never_wrong_and_an_upload_heals_it(
    durable: tuple[ChunkStore, Flip],
) -> None:
    inner, flip = durable
    store = VerifiedChunkStore(inner)
    await store.put(DIGEST, DATA)
    await flip()

    assert await store.get(DIGEST) is None

    assert store.corrupt == 1
    assert await store.missing([DIGEST]) == {DIGEST}, "so whoever has it sends it again"
    await store.put(DIGEST, DATA)
    assert await store.get(DIGEST) == DATA


async def test_a_byte_flipped_in_redis_never_reaches_a_node(
    redis_url: str, redis: RedisConnection, tmp_path: Path
) -> None:
    async with compiler_mesh(redis_url, tmp_path / "mesh") as mesh:
        path = tmp_path / "model.onnx"
        path.write_bytes(random_bytes(3_000_000))
        manifest = manifest_of({"model.onnx": path.read_bytes()}, chunk_bytes=(1 << 20) - 4096)
        _, _, chunks = await store_file(mesh.storage.chunks, path)
        assert chunks == manifest.files[0].chunks
        for number, chunk in enumerate(chunks):
            await flip_in_redis(redis, chunk.digest, 1000 * number)
        cache = LocalCache(tmp_path / "node")

        report = await ChunkFetcher(mesh.channel, cache).fetch(manifest)

        assert contents(cache, manifest)["model.onnx"] == path.read_bytes()
        assert report.chunks_corrupt == 0, "the service noticed first"


def blob(service: FakeArtifactCache, seed: int, chunks: int = 12) -> tuple[Manifest, bytes]:
    data = random_bytes(chunks * CHUNK, seed)
    manifest = manifest_of({"model.onnx": data}, chunk_bytes=CHUNK)
    service.publish(manifest, {"model.onnx": data})
    return manifest, data


async def fetch_until_done(address: str, cache: LocalCache, manifest: Manifest) -> int:
    """As a node does that is started again after each failure; returns how many attempts there were."""
    for attempt in range(1, 40):
        settings = FetchSettings(chunk_timeout_s=0.5, idle_attempts=3)
        async with grpc.aio.insecure_channel(address, options=[("grpc.initial_reconnect_backoff_ms", 20)]) as channel:
            with contextlib.suppress(DovetailError):
                await ChunkFetcher(channel, cache, settings=settings, backoff=quick).fetch(manifest)
                return attempt
    raise AssertionError("40 attempts did not bring it")


async def test_bits_flipped_anywhere_on_the_wire_cost_time_and_never_a_wrong_byte(
    service: FakeArtifactCache, tmp_path: Path
) -> None:
    """Also in headers, lengths and settings of the protocol."""
    async with Link(service.address).running() as link:
        for seed in seeds(25):
            with replayable(seed):
                rng = random.Random(seed)
                manifest, data = blob(service, seed)
                link.flip = {link.down_bytes + rng.randrange(13 * CHUNK) for _ in range(rng.randint(1, 4))}
                cache = LocalCache(tmp_path / str(seed))

                await fetch_until_done(link.address, cache, manifest)

                assert contents(cache, manifest)["model.onnx"] == data


async def test_three_bad_copies_from_one_source_end_its_use_and_another_is_asked(
    service: FakeArtifactCache, channel: grpc.aio.Channel, tmp_path: Path
) -> None:
    manifest, data = blob(service, 1)
    bad = manifest.files[0].chunks[4].digest
    async with FakeArtifactCache() as liar, grpc.aio.insecure_channel(liar.address) as near:
        liar.publish(manifest, {"model.onnx": data})
        liar.flip[bad] = 99
        cache = LocalCache(tmp_path)
        fetcher = ChunkFetcher(channel, cache, backoff=quick, nearer=[("the site", near)], clock=ManualClock())

        report = await fetcher.fetch(manifest)

        assert contents(cache, manifest)["model.onnx"] == data
        assert liar.sent[bad] == report.chunks_corrupt == MAX_BAD_COPIES
        assert service.sent[bad] == 1
        asked = sum(liar.sent.values())
        again, more = blob(service, 2)
        liar.publish(again, {"model.onnx": more})
        await fetcher.fetch(again)
        assert sum(liar.sent.values()) == asked, "it is not asked for a while"


async def test_a_node_whose_only_source_sends_wrong_bytes_serves_what_it_has_and_says_why(
    service: FakeArtifactCache, make_node: NodeMaker
) -> None:
    await publish(service, answering(1))
    async with make_node().following() as node:
        await node.serves(answering(1))
        better = answering(2, padding_bytes=9000)
        service.flip = dict.fromkeys(better.manifest.chunk_digests() - answering(1).manifest.chunk_digests(), 99)
        await publish(service, better)

        await node.until(lambda: "wrong bytes" in node.updater.problem)

        assert node.updater.error is not None
        assert who_answered(await node.logits(), (1,))


async def test_a_byte_flipped_on_the_disk_of_a_site_cache_is_fetched_again_from_above(
    service: FakeArtifactCache, tmp_path: Path
) -> None:
    manifest, data = blob(service, 3)
    first, second = LocalCache(tmp_path / "first"), LocalCache(tmp_path / "second")
    async with cache_site(service.address, tmp_path / "site") as site:
        await fetch_until_done(address_of(site), first, manifest)
    assert set(service.sent.values()) == {1}
    flip_file(tmp_path / "site")

    async with (
        cache_site(service.address, tmp_path / "site") as site,
        grpc.aio.insecure_channel(address_of(site)) as channel,
    ):
        report = await ChunkFetcher(channel, second).fetch(manifest)

    assert contents(second, manifest)["model.onnx"] == data
    assert report.chunks_corrupt == 0, "the cache noticed first"
    assert set(service.sent.values()) == {2}
