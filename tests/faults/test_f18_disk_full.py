# SPDX-License-Identifier: Apache-2.0
"""F18: a disk fills up, for real (small disks in memory): of a node, of the durable tier, of scratch, of Redis' log.

What does not fit is refused with the error that says so, nothing is left half-written, what served serves, and when
there is room again it works again by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import grpc
import grpc.aio
import pytest

from dovetail.digest import sha256_hex
from dovetail.errors import OverLimitError, UnavailableError
from dovetail.store.disk import DiskChunkStore, DiskDocumentStore
from dovetail.store.redis_connection import connect
from tests.fakes import real_disk
from tests.fakes.acquiring_node import NodeMaker
from tests.fakes.answering_artifacts import answering, who_answered
from tests.fakes.compiler_mesh import compiler_mesh
from tests.fakes.fake_artifact_cache import FakeArtifactCache
from tests.fakes.tiny_artifacts import random_bytes
from tests.fixtures_node import publish
from tests.fixtures_redis import RedisServer

MIB = 1 << 20
OLD, NEW = 1, 2

WHY_NOT = real_disk.missing()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


def fill(disk: Path) -> Path:
    """Take every free byte; removing the file gives them back."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(64 * 1024))
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0")
    return ballast


async def test_a_node_without_room_serves_on_and_takes_the_artifact_when_there_is_room(
    service: FakeArtifactCache, make_node: NodeMaker, tmp_path: Path
) -> None:
    big = answering(NEW, padding_bytes=6 * MIB, chunk_bytes=256 * 1024)
    await publish(service, answering(OLD))
    with real_disk.small_disk(tmp_path / "disk", 20 * MIB) as disk:
        async with make_node("disk/node").following() as node:
            await node.serves(answering(OLD))
            await publish(service, big)

            await node.until(lambda: "the disk is full" in node.updater.problem)

            assert isinstance(node.updater.error, OverLimitError)
            assert who_answered(await node.logits(), (OLD,))
            assert list((disk / "node" / "partial").iterdir()) == []
            padding = {
                chunk.digest for entry in big.manifest.files for chunk in entry.chunks if entry.name == "padding.bin"
            }
            assert not padding & service.sent.keys(), "no byte was fetched in vain"
            real_disk.run("mount", "-o", f"remount,size={40 * MIB}", str(disk))
            await node.serves(big)
            assert who_answered(await node.logits(), (NEW,))


async def test_a_disk_that_fills_while_a_fetch_runs_costs_neither_the_fetch_nor_what_serves(
    service: FakeArtifactCache, make_node: NodeMaker, tmp_path: Path
) -> None:
    """All room was reserved before the first byte came."""
    big = answering(NEW, padding_bytes=2 * MIB, chunk_bytes=256 * 1024)
    await publish(service, answering(OLD))
    with real_disk.small_disk(tmp_path / "disk", 24 * MIB) as disk:
        async with make_node("disk/node").following() as node:
            await node.serves(answering(OLD))
            service.hold_after = 3
            await publish(service, big)
            await service.holding.wait()
            ballast = fill(disk)

            service.hold_after = None
            await service.stop()
            await service.start()

            await node.serves(big)
            assert who_answered(await node.logits(), (NEW,))
        restarted = make_node("disk/node")
        assert await restarted.updater.start_from_disk(), "on a disk that is full to the last byte"
        assert who_answered(await restarted.logits(), (OLD, NEW))
        await restarted.repository.close()
        ballast.unlink()
        async with make_node("disk/node").following() as node:
            await node.serves(big)


async def test_a_node_whose_journal_cannot_be_written_serves_all_the_same_and_writes_it_later(
    service: FakeArtifactCache, make_node: NodeMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with real_disk.small_disk(tmp_path / "disk", 24 * MIB) as disk:
        service.publish(answering(OLD).manifest, answering(OLD).files)
        node = make_node("disk/node")
        stored = node.cache.put_manifest(answering(OLD).manifest.to_bytes(), service.envelopes[answering(OLD).key])
        await node.tools.fetcher.fetch(stored.manifest)
        ballast = fill(disk)

        await node.updater._serve(stored)

        assert who_answered(await node.logits(), (OLD,))
        assert any("slots.write_failed" in message for message in caplog.messages)
        ballast.unlink()
        await node.updater._record(lambda state: state)
        again = make_node("disk/node")
        assert await again.updater.start_from_disk()
        await again.repository.close()
        await node.repository.close()


async def test_a_full_durable_tier_refuses_whole_chunks_and_keeps_all_that_it_took(tmp_path: Path) -> None:
    with real_disk.small_disk(tmp_path / "disk", 2 * MIB) as disk:
        chunks = DiskChunkStore(disk, min_free_bytes=0)
        documents = DiskDocumentStore(disk, min_free_bytes=0)
        await documents.put("a/b", b"old")
        taken, refused = {}, ""
        for number in range(40):
            data = random_bytes(100_000, number)
            digest = sha256_hex(data)
            try:
                await chunks.put(digest, data)
                taken[digest] = data
            except OverLimitError:
                refused = digest
                break
        fill(disk)
        with pytest.raises(OverLimitError):
            await documents.put("a/b", random_bytes(100_000))

        assert len(taken) > 10
        assert {digest: await chunks.get(digest) for digest in taken} == taken
        assert await chunks.missing([*taken, refused]) == {refused}
        assert await documents.get("a/b") == b"old"
        assert [path for folder in disk.glob("*.tmp") for path in folder.iterdir()] == [], "scraps take room too"
        (disk / "ballast").unlink()
        real_disk.run("mount", "-o", f"remount,size={4 * MIB}", str(disk))
        await chunks.put(refused, random_bytes(100_000, len(taken)))
        assert await chunks.missing([refused]) == set()


@pytest.mark.parametrize("which", ["DOVETAIL_SCRATCH_DIR", "DOVETAIL_BLOB_DIR"])
async def test_a_push_that_finds_a_full_disk_is_refused_and_works_when_there_is_room(
    redis_url: str, tmp_path: Path, which: str
) -> None:
    with real_disk.small_disk(tmp_path / "disk", MIB) as disk:
        async with compiler_mesh(redis_url, tmp_path, **{which: str(disk)}) as mesh:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await mesh.push_digits()

            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert str(disk) not in str(refused.value.details())
            assert not [path for path in disk.rglob("*") if path.is_file() and path.stat().st_size > 64 * 1024]
            real_disk.run("mount", "-o", f"remount,size={512 * MIB}", str(disk))
            assert (await mesh.push_digits()).model.version == 1


async def test_redis_whose_log_has_no_room_refuses_writes_with_our_error_and_takes_them_again_later(
    tmp_path: Path, redis_factory: Callable[..., RedisServer]
) -> None:
    with real_disk.small_disk(tmp_path / "disk", 4 * MIB) as disk:
        server = redis_factory(
            "--appendonly", "yes", "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0", "--dir", str(disk)
        )
        redis = connect(server.url)
        await redis.call("SET", "kept", "1")
        ballast = fill(disk)
        try:
            refused = await until_refused(redis.call)

            assert "MISCONF" not in type(refused).__name__
            assert await redis.call("GET", "kept") == b"1", "reads go on"
            ballast.unlink()
            await until_accepted(redis.call)
        finally:
            await redis.aclose()
            server.close()


async def until_refused(call: Callable[..., object]) -> UnavailableError:
    """Write until Redis refuses; what it had acknowledged before is in memory, as `everysec` promises no more."""
    async with asyncio.timeout(60):
        while True:
            try:
                await call("SET", "filler", bytes(64 * 1024))  # type: ignore[misc]
            except UnavailableError as exc:
                return exc
            await asyncio.sleep(0.05)


async def until_accepted(call: Callable[..., object]) -> None:
    """Redis looks every second whether its log can be written."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(UnavailableError):
                await call("SET", "after", "1")  # type: ignore[misc]
                return
            await asyncio.sleep(0.05)
