# SPDX-License-Identifier: Apache-2.0
"""F20: links that are slow, far, lossy, that stall, break in the middle of a chunk, and come and go.

Progress never goes back, deadlines are for a chunk and never for a file, and what serves serves. A proxy plays the
link; where the kernel lets us, its own traffic shaping and packet loss do it too.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest

from dovetail.artifact import Manifest
from dovetail.fingerprint import Fingerprint
from runtime_svc.acquire.fetch import ChunkFetcher, FetchReport, FetchSettings
from runtime_svc.acquire.local_cache import LocalCache
from tests.fakes.acquiring_node import AcquiringNode, contents, quick
from tests.fakes.answering_artifacts import answering, who_answered
from tests.fakes.chunk_service import SMALL_WINDOW, chunk_service
from tests.fakes.fake_artifact_cache import FakeArtifactCache
from tests.fakes.link import Link
from tests.fakes.node_nursery import nursery
from tests.fakes.tiny_artifacts import manifest_of, random_bytes
from tests.faults.seeds import replayable, seeds
from tests.fixtures_node import publish

CHUNK = 4096
RECONNECT = [
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 50),
]


@pytest.fixture
async def link(service: FakeArtifactCache) -> AsyncIterator[Link]:
    """A link to `service`."""
    async with Link(service.address).running() as running:
        yield running


@pytest.fixture
async def far(link: Link) -> AsyncIterator[grpc.aio.Channel]:
    """A channel through `link`."""
    async with grpc.aio.insecure_channel(link.address, options=[*RECONNECT, *SMALL_WINDOW]) as opened:
        yield opened


class Watcher:
    """A progress callback that fails if progress goes back."""

    def __init__(self) -> None:
        self.present_bytes = 0
        self.moved = asyncio.Event()

    def __call__(self, report: FetchReport) -> None:
        assert report.present_bytes > self.present_bytes
        self.present_bytes = report.present_bytes
        self.moved.set()


def blob(service: FakeArtifactCache, chunks: int, chunk_bytes: int = CHUNK) -> tuple[Manifest, bytes]:
    data = random_bytes(chunks * chunk_bytes, chunks)
    manifest = manifest_of({"model.onnx": data}, chunk_bytes=chunk_bytes)
    service.publish(manifest, {"model.onnx": data})
    return manifest, data


async def test_64_kbit_a_second_and_a_long_way_are_enough_because_deadlines_are_for_a_chunk(
    service: FakeArtifactCache, link: Link, far: grpc.aio.Channel, tmp_path: Path
) -> None:
    """The whole file takes three times as long as any one chunk may."""
    manifest, data = blob(service, 8)
    link.rate_bytes_s, link.delay_s = 8000, 0.3
    cache, settings = LocalCache(tmp_path), FetchSettings(chunk_timeout_s=2.0, whole_chunk_timeout_s=2.0)
    started = asyncio.get_running_loop().time()

    report = await ChunkFetcher(far, cache, settings=settings, backoff=quick).fetch(manifest, Watcher())

    assert asyncio.get_running_loop().time() - started > 4.0, "else the link was not slow"
    assert contents(cache, manifest)["model.onnx"] == data
    assert report.streams == 1
    assert set(service.sent.values()) == {1}


async def test_a_link_that_stalls_is_left_and_tried_again_and_keeps_what_came(
    service: FakeArtifactCache, link: Link, far: grpc.aio.Channel, tmp_path: Path
) -> None:
    manifest, data = blob(service, 40)
    cache, settings = LocalCache(tmp_path), FetchSettings(chunk_timeout_s=0.3, idle_attempts=1000)
    link.at_byte, link.then = 70_000, link.up.clear
    watcher = Watcher()
    fetching = asyncio.create_task(ChunkFetcher(far, cache, settings=settings, backoff=quick).fetch(manifest, watcher))
    await watcher.moved.wait()
    while link.up.is_set():
        await asyncio.sleep(0.01)
    await asyncio.sleep(1.0)  # the stall itself
    before = watcher.present_bytes

    link.cut()
    link.up.set()
    report = await fetching

    assert before > 0
    assert report.streams > 1
    assert contents(cache, manifest)["model.onnx"] == data


async def test_a_link_that_breaks_in_the_middle_of_every_chunk_still_brings_all_of_them(tmp_path: Path) -> None:
    """No connection lives long enough for one chunk: pieces that came are kept."""
    data = random_bytes(3 * 900_000)
    manifest = manifest_of({"model.onnx": data}, chunk_bytes=900_000)
    pieces = [data[start : start + 900_000] for start in range(0, len(data), 900_000)]
    async with chunk_service(*pieces) as served, Link(served.address).running() as link:
        link.break_every = 500_000
        cache, settings = LocalCache(tmp_path), FetchSettings(idle_attempts=30)
        async with grpc.aio.insecure_channel(link.address, options=[*RECONNECT, *SMALL_WINDOW]) as channel:
            await ChunkFetcher(channel, cache, settings=settings, backoff=quick).fetch(manifest, Watcher())

    assert contents(cache, manifest)["model.onnx"] == data
    assert link.connections >= len(data) // 500_000
    assert link.down_bytes < 2 * len(data)


async def test_a_link_that_comes_and_goes_never_takes_progress_back(
    service: FakeArtifactCache, link: Link, far: grpc.aio.Channel, tmp_path: Path
) -> None:
    for seed in seeds(2):
        with replayable(seed):
            rng = random.Random(seed)
            manifest, data = blob(service, 60 + seed % 7)
            cache, settings = LocalCache(tmp_path / str(seed)), FetchSettings(chunk_timeout_s=1.0, idle_attempts=1000)
            link.rate_bytes_s = 400_000
            fetching = asyncio.create_task(
                ChunkFetcher(far, cache, settings=settings, backoff=quick).fetch(manifest, Watcher())
            )
            down = False
            while not fetching.done():
                link.set_down(down := not down)
                await asyncio.sleep(rng.uniform(0.01, 0.15))
            link.set_down(False)

            await fetching

            assert contents(cache, manifest)["model.onnx"] == data


async def test_a_node_behind_a_link_that_comes_and_goes_answers_all_the_time_and_ends_at_the_newest(
    service: FakeArtifactCache, link: Link, far: grpc.aio.Channel, fingerprint: Fingerprint, tmp_path: Path
) -> None:
    await publish(service, answering(1))
    newest, answers = 6, 0
    async with AcquiringNode(tmp_path, far, fingerprint).following() as node:
        await node.serves(answering(1))
        for number in range(2, newest + 1):
            await publish(service, answering(number, padding_bytes=20_000))
            link.set_down(number % 2 == 0)
            for _ in range(20):
                assert who_answered(await node.logits(), range(1, newest + 1)) <= number
                answers += 1
                await asyncio.sleep(0.005)
        link.set_down(False)

        await node.serves(answering(newest, padding_bytes=20_000))

        assert who_answered(await node.logits(), range(1, newest + 1)) == newest
    assert answers == 20 * (newest - 1)


def why_no_lossy_network() -> str:
    """What this machine lacks for a network of its own; "" if nothing."""
    if os.geteuid() != 0:
        return "a network namespace needs root"
    absent = [name for name in ("ip", "tc", "iptables", "unshare") if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    tries = (
        "ip link set lo up && tc qdisc add dev lo root tbf rate 64kbit burst 4000 latency 500ms"
        " && iptables -A INPUT -m statistic --mode random --probability 0.1 -j DROP"
    )
    done = subprocess.run(["unshare", "--net", "sh", "-c", tries], capture_output=True, text=True, check=False)
    return f"this kernel cannot shape traffic or drop packets: {done.stderr.strip()[:200]}" if done.returncode else ""


WHY_NOT = why_no_lossy_network()


@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
@pytest.mark.parametrize(("rate", "loss"), [("64kbit", 0.0), ("512kbit", 0.1)])
async def test_the_kernels_own_slow_and_lossy_loopback_brings_every_byte(
    tmp_path: Path, rate: str, loss: float
) -> None:
    async with nursery() as young:
        child = await young.start("fetch_over_lossy_link", root=str(tmp_path / "node"), rate=rate, loss=loss)

        assert await child.code() == 0
