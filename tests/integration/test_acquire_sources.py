# SPDX-License-Identifier: Apache-2.0
"""Fetching from several sources: a site's cache first, then the core, each for what the others lack."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest

from dovetail.artifact import Manifest
from dovetail.clock import ManualClock
from dovetail.digest import sha256_hex
from dovetail.errors import BusyError, IntegrityError, InvalidInputError, NotFoundError, UnavailableError
from dovetail.rpc.chunk_sender import SendLimits
from runtime_svc.acquire.backoff import Backoff
from runtime_svc.acquire.fetch import ChunkFetcher, FetchSettings
from runtime_svc.acquire.local_cache import LocalCache
from runtime_svc.acquire.needed import needed_files
from runtime_svc.acquire.sources import BAN_S, Source
from runtime_svc.settings import NodeSettings
from tests.fakes.acquiring_node import contents
from tests.fakes.chunk_service import chunk_service
from tests.fakes.fake_artifact_cache import FakeArtifactCache
from tests.fakes.tiny_artifacts import file_entry, manifest_of, random_bytes

CHUNK = 64 * 1024


async def no_sleep(seconds: float) -> None:
    await asyncio.sleep(0)


@pytest.fixture
async def near() -> AsyncIterator[FakeArtifactCache]:
    """A source that is asked before `service`."""
    async with FakeArtifactCache() as fake:
        yield fake


@pytest.fixture
async def near_channel(near: FakeArtifactCache) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(near.address) as opened:
        yield opened


def publish(data: bytes, *services: FakeArtifactCache) -> Manifest:
    manifest = manifest_of({"model.onnx": data}, chunk_bytes=CHUNK)
    for service in services:
        service.publish(manifest, {"model.onnx": data})
    return manifest


class Sourced:
    """A fetcher with one nearer source, its cache and its clock."""

    def __init__(self, root: Path, core: grpc.aio.Channel, near: grpc.aio.Channel, **settings: float) -> None:
        self.cache = LocalCache(root)
        self.clock = ManualClock()
        self.fetcher = ChunkFetcher(
            core,
            self.cache,
            settings=FetchSettings(**settings),  # type: ignore[arg-type]
            backoff=lambda: Backoff(sleep=no_sleep),
            nearer=[("the site", near)],
            clock=self.clock,
        )

    async def fetch(self, manifest: Manifest) -> bytes:
        await self.fetcher.fetch(manifest)
        return contents(self.cache, manifest)["model.onnx"]


@pytest.fixture
def sourced(tmp_path: Path, channel: grpc.aio.Channel, near_channel: grpc.aio.Channel) -> Sourced:
    return Sourced(tmp_path, channel, near_channel)


async def test_the_nearer_source_is_asked_and_the_core_is_left_alone(
    service: FakeArtifactCache, near: FakeArtifactCache, sourced: Sourced
) -> None:
    data = random_bytes(8 * CHUNK)
    manifest = publish(data, service, near)

    assert await sourced.fetch(manifest) == data

    assert sum(near.sent.values()) == 8
    assert sum(service.sent.values()) == 0


async def test_chunks_that_one_source_lacks_come_from_the_next(
    service: FakeArtifactCache, near: FakeArtifactCache, sourced: Sourced
) -> None:
    data = random_bytes(8 * CHUNK)
    manifest = publish(data, service, near)
    lost = {manifest.files[0].chunks[index].digest for index in (0, 3, 7)}
    near.lost |= lost

    assert await sourced.fetch(manifest) == data

    assert set(service.sent) >= lost
    assert sum(near.sent.values()) + sum(service.sent.values()) == 8, "each chunk came once"


async def test_a_chunk_that_all_sources_lack_ends_the_fetch_by_name(
    service: FakeArtifactCache, near: FakeArtifactCache, sourced: Sourced
) -> None:
    manifest = publish(random_bytes(4 * CHUNK), service, near)
    lost = manifest.files[0].chunks[1].digest
    near.lost.add(lost)
    service.lost.add(lost)

    with pytest.raises(NotFoundError, match=lost):
        await sourced.fetch(manifest)


async def test_a_source_that_is_away_costs_one_attempt_and_is_then_left_alone(
    service: FakeArtifactCache, near: FakeArtifactCache, sourced: Sourced
) -> None:
    data = random_bytes(4 * CHUNK)
    manifest = publish(data, service)
    await near.stop()

    first = await sourced.fetcher.fetch(manifest)
    second = await sourced.fetcher.fetch(publish(random_bytes(4 * CHUNK, 9), service))

    assert (first.streams, second.streams) == (2, 1)


async def test_a_source_that_breaks_off_is_replaced_in_the_middle_of_a_file(
    service: FakeArtifactCache, near: FakeArtifactCache, sourced: Sourced
) -> None:
    data = random_bytes(8 * CHUNK)
    manifest = publish(data, service, near)
    near.drop_after = [3, *[0] * 100]

    assert await sourced.fetch(manifest) == data

    assert (sum(near.sent.values()), sum(service.sent.values())) == (3, 5)


async def test_three_bad_chunks_ban_a_source_for_a_while(
    service: FakeArtifactCache, near: FakeArtifactCache, sourced: Sourced, caplog: pytest.LogCaptureFixture
) -> None:
    data = random_bytes(8 * CHUNK)
    manifest = publish(data, service, near)
    near.flip = {chunk.digest: 99 for chunk in manifest.files[0].chunks}
    other = random_bytes(4 * CHUNK, 9)
    later = random_bytes(4 * CHUNK, 10)

    assert await sourced.fetch(manifest) == data
    sent_when_banned = sum(near.sent.values())
    assert await sourced.fetch(publish(other, service, near)) == other
    assert sum(near.sent.values()) == sent_when_banned, "it is not asked while it is banned"
    sourced.clock.advance(BAN_S + 1)
    near.flip.clear()
    assert await sourced.fetch(publish(later, service, near)) == later

    assert sum(near.sent.values()) == sent_when_banned + 4, "it is asked again when the ban is over"
    assert sum("source.banned" in message for message in caplog.messages) == 1


async def test_when_all_sources_bring_wrong_bytes_nothing_is_kept_and_the_next_fetch_says_why(
    service: FakeArtifactCache, near: FakeArtifactCache, sourced: Sourced
) -> None:
    manifest = publish(random_bytes(4 * CHUNK), service, near)
    for source in (service, near):
        source.flip = {chunk.digest: 99 for chunk in manifest.files[0].chunks}

    with pytest.raises(IntegrityError, match="3 times in a row"):
        await sourced.fetch(manifest)
    with pytest.raises(UnavailableError, match="brought wrong bytes"):
        await sourced.fetch(manifest)


async def test_a_source_that_trickles_is_replaced_when_a_chunk_takes_too_long(
    service: FakeArtifactCache, channel: grpc.aio.Channel, tmp_path: Path
) -> None:
    data = random_bytes(4 * CHUNK)
    manifest = publish(data, service)
    pieces = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    trickle = SendLimits(memory_bytes=8 << 20, bytes_per_s=20_000)
    async with (
        chunk_service(*pieces, limits=trickle) as slow,
        grpc.aio.insecure_channel(slow.address) as slow_channel,
    ):
        sourced = Sourced(tmp_path, channel, slow_channel, chunk_timeout_s=30.0, whole_chunk_timeout_s=0.3)

        assert await sourced.fetch(manifest) == data

    assert sum(service.sent.values()) >= 3


async def test_all_fetches_of_a_node_together_keep_to_its_rate(
    service: FakeArtifactCache, channel: grpc.aio.Channel, tmp_path: Path
) -> None:
    manifests = [publish(random_bytes(2 * CHUNK, seed), service) for seed in (1, 2)]
    fetcher = ChunkFetcher(channel, LocalCache(tmp_path), settings=FetchSettings(bytes_per_s=8 * CHUNK))
    started_s = asyncio.get_running_loop().time()

    await asyncio.gather(*(fetcher.fetch(manifest) for manifest in manifests))

    assert asyncio.get_running_loop().time() - started_s > 0.2, "256 KiB at 512 KiB a second, less what came first"


async def test_reports_for_people_are_not_fetched(
    service: FakeArtifactCache, channel: grpc.aio.Channel, tmp_path: Path
) -> None:
    data, report = random_bytes(CHUNK), random_bytes(CHUNK, 2)
    whole = manifest_of({"model.onnx": data}, chunk_bytes=CHUNK)
    entries = (*whole.files, file_entry("report.json", report, role="report"))
    manifest = Manifest.from_bytes(whole.to_bytes())
    manifest = type(manifest)(**{name: getattr(manifest, name) for name in manifest.__slots__} | {"files": entries})
    service.publish(manifest, {"model.onnx": data, "report.json": report})
    cache = LocalCache(tmp_path)
    stored = cache.put_manifest(manifest.to_bytes())
    cache.reserve(stored, keep=())

    report_of_fetch = await ChunkFetcher(channel, cache).fetch(manifest)

    assert [entry.name for entry in needed_files(manifest)] == ["model.onnx"]
    assert report_of_fetch.total_bytes == len(data)
    assert sha256_hex(report) not in service.sent
    assert list(contents(cache, manifest)) == ["model.onnx"]
    assert list((tmp_path / "partial").iterdir()) == []


async def test_a_source_that_is_busy_is_left_alone_as_long_as_it_says(channel: grpc.aio.Channel) -> None:
    clock = ManualClock()
    source = Source("the site", channel, Backoff(), clock)

    source.failed(BusyError("full", retry_after_s=40.0))

    assert source.pause_s == pytest.approx(40.0)
    source.worked()
    assert source.pause_s == 0


def test_sources_and_rate_are_settings_of_a_node() -> None:
    settings = NodeSettings.from_env(
        {"DOVETAIL_SOURCES": "cache-1:7003, cache-2:7003", "DOVETAIL_FETCH_BYTES_PER_S": "125000"}, role="edge"
    )

    assert settings.sources == ("cache-1:7003", "cache-2:7003")
    assert settings.fetch_bytes_per_s == 125_000
    assert NodeSettings.from_env({}, role="edge").sources == ()
    with pytest.raises(InvalidInputError, match="DOVETAIL_SOURCES"):
        NodeSettings.from_env({"DOVETAIL_SOURCES": "cache-1"}, role="edge")
