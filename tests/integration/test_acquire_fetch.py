# SPDX-License-Identifier: Apache-2.0
"""Fetching files over real gRPC into a real cache, with the faults that a network and a service have."""

import asyncio
from pathlib import Path

import grpc.aio
import numpy as np
import pytest

from dovetail.artifact import Manifest
from dovetail.errors import IntegrityError, NotFoundError, UnavailableError
from runtime_svc.acquire.backoff import Backoff
from runtime_svc.acquire.fetch import MAX_BAD_COPIES, ChunkFetcher, FetchReport, FetchSettings
from runtime_svc.acquire.local_cache import LocalCache
from tests.fakes.acquiring_node import contents, quick
from tests.fakes.fake_artifact_cache import FakeArtifactCache
from tests.fakes.tiny_artifacts import manifest_of, random_bytes

CHUNK = 64 * 1024
IMAGE = np.full((1, 1, 8, 8), 0.5, dtype=np.float32)


async def no_sleep(seconds: float) -> None:
    await asyncio.sleep(0)


def blob(service: FakeArtifactCache, chunks: int = 8, seed: int = 0) -> tuple[Manifest, bytes]:
    data = random_bytes(chunks * CHUNK, seed)
    manifest = manifest_of({"model.onnx": data}, chunk_bytes=CHUNK)
    service.publish(manifest, {"model.onnx": data})
    return manifest, data


class Arrived:
    """A progress callback that tells when so many chunks are kept."""

    def __init__(self, chunks: int) -> None:
        self._chunks = chunks
        self.reached = asyncio.Event()

    def __call__(self, report: FetchReport) -> None:
        if report.chunks_fetched >= self._chunks:
            self.reached.set()


def fetcher(channel: grpc.aio.Channel, cache: LocalCache, **settings: float) -> ChunkFetcher:
    return ChunkFetcher(
        channel, cache, settings=FetchSettings(**settings), backoff=lambda: Backoff(sleep=no_sleep)  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize("compress", [False, True])
async def test_a_fetched_file_is_byte_identical_and_progress_is_told(
    service: FakeArtifactCache, channel: grpc.aio.Channel, tmp_path: Path, compress: bool
) -> None:
    service.compress = compress
    manifest, data = blob(service)
    cache = LocalCache(tmp_path)
    seen: list[int] = []

    report = await fetcher(channel, cache).fetch(manifest, lambda now: seen.append(now.present_bytes))

    path = cache.path(manifest.files[0].digest)
    assert list(contents(cache, manifest)) == ["model.onnx"]
    assert path.read_bytes() == data
    assert seen == [CHUNK * count for count in range(1, 9)]
    assert report == FetchReport(8 * CHUNK, 8 * CHUNK, chunks_fetched=8, chunks_corrupt=0, streams=1)


async def test_a_chunk_with_a_flipped_byte_is_fetched_again_and_never_kept(
    service: FakeArtifactCache, channel: grpc.aio.Channel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest, data = blob(service)
    bad = manifest.files[0].chunks[3].digest
    service.flip[bad] = MAX_BAD_COPIES - 1
    cache = LocalCache(tmp_path)

    report = await fetcher(channel, cache).fetch(manifest)

    assert contents(cache, manifest)["model.onnx"] == data
    assert report.chunks_corrupt == MAX_BAD_COPIES - 1
    assert service.sent[bad] == MAX_BAD_COPIES
    assert sum(service.sent.values()) == 8 + MAX_BAD_COPIES - 1, "only the bad chunk is fetched again"
    assert sum("fetch.chunk_corrupt" in message for message in caplog.messages) == MAX_BAD_COPIES - 1


async def test_a_chunk_that_is_always_wrong_ends_the_fetch_with_nothing_to_load(
    service: FakeArtifactCache, channel: grpc.aio.Channel, tmp_path: Path
) -> None:
    manifest, _ = blob(service)
    service.flip[manifest.files[0].chunks[3].digest] = 99
    cache = LocalCache(tmp_path)

    with pytest.raises(IntegrityError, match="3 times"):
        await fetcher(channel, cache).fetch(manifest)

    with pytest.raises(NotFoundError):
        contents(cache, manifest)


async def test_dropped_streams_resume_with_only_what_is_missing(
    service: FakeArtifactCache, channel: grpc.aio.Channel, tmp_path: Path
) -> None:
    manifest, data = blob(service, chunks=20)
    service.drop_after = [3, 0, 7, 0, 0]
    cache = LocalCache(tmp_path)

    report = await fetcher(channel, cache).fetch(manifest)

    assert contents(cache, manifest)["model.onnx"] == data
    assert set(service.sent.values()) == {1}
    assert report.streams == 6


async def test_a_service_that_dies_and_comes_back_costs_only_what_was_in_flight(
    service: FakeArtifactCache, channel: grpc.aio.Channel, tmp_path: Path
) -> None:
    manifest, _ = blob(service, chunks=20)
    service.hold_after = 5
    cache = LocalCache(tmp_path)
    patient = ChunkFetcher(channel, cache, settings=FetchSettings(idle_attempts=200), backoff=quick)
    five = Arrived(5)
    job = asyncio.create_task(patient.fetch(manifest, five))
    await five.reached.wait()

    await service.stop()
    service.hold_after = None
    await service.start()
    await job

    contents(cache, manifest)
    assert set(service.sent.values()) == {1}


async def test_a_service_that_stays_away_is_reported_and_what_came_is_kept(
    service: FakeArtifactCache, channel: grpc.aio.Channel, tmp_path: Path
) -> None:
    manifest, _ = blob(service)
    service.drop_after = [3, *([0] * 50)]
    cache = LocalCache(tmp_path)

    with pytest.raises(UnavailableError, match="misses 5 of 8 chunks after 4 attempts without progress"):
        await fetcher(channel, cache, idle_attempts=4).fetch(manifest)

    with cache.open_partial(manifest.files[0]) as partial:
        assert partial.missing() == (3, 4, 5, 6, 7)


async def test_a_stream_that_stalls_is_dropped_and_asked_for_again(
    service: FakeArtifactCache, channel: grpc.aio.Channel, tmp_path: Path
) -> None:
    manifest, _ = blob(service)
    service.hold_after = 4
    cache = LocalCache(tmp_path)

    report = await fetcher(channel, cache, chunk_timeout_s=0.2).fetch(manifest)

    assert report.streams == 2
    contents(cache, manifest)


async def test_a_chunk_that_the_service_lost_is_told_by_name(
    service: FakeArtifactCache, channel: grpc.aio.Channel, tmp_path: Path
) -> None:
    manifest, _ = blob(service)
    lost = manifest.files[0].chunks[2].digest
    service.lost.add(lost)

    with pytest.raises(NotFoundError, match=lost):
        await fetcher(channel, LocalCache(tmp_path)).fetch(manifest)


async def test_equal_chunks_of_a_file_are_fetched_once(
    service: FakeArtifactCache, channel: grpc.aio.Channel, tmp_path: Path
) -> None:
    data = bytes(CHUNK) * 6 + b"end"
    manifest = manifest_of({"model.onnx": data}, chunk_bytes=CHUNK)
    service.publish(manifest, {"model.onnx": data})
    cache = LocalCache(tmp_path)

    await fetcher(channel, cache).fetch(manifest)

    assert contents(cache, manifest)["model.onnx"] == data
    assert sum(service.sent.values()) == 2


async def test_two_fetches_of_one_file_share_the_work(
    service: FakeArtifactCache, channel: grpc.aio.Channel, tmp_path: Path
) -> None:
    manifest, _ = blob(service)
    shared = fetcher(channel, LocalCache(tmp_path))

    await asyncio.gather(*(shared.fetch(manifest) for _ in range(3)))

    assert set(service.sent.values()) == {1}


async def test_a_cancelled_fetch_keeps_what_came(
    service: FakeArtifactCache, channel: grpc.aio.Channel, tmp_path: Path
) -> None:
    manifest, _ = blob(service)
    service.hold_after = 5
    cache = LocalCache(tmp_path)
    five = Arrived(5)
    job = asyncio.create_task(fetcher(channel, cache).fetch(manifest, five))
    await five.reached.wait()
    job.cancel()
    await asyncio.gather(job, return_exceptions=True)
    service.hold_after = None

    await fetcher(channel, cache).fetch(manifest)

    contents(cache, manifest)
    assert set(service.sent.values()) == {1}
