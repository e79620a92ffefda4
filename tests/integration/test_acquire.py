# SPDX-License-Identifier: Apache-2.0
"""Acquiring artifacts over real gRPC into a real cache, with the faults that a network, a store and a disk have."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc.aio
import numpy as np
import pytest

from dovetail.artifact import Manifest
from dovetail.contract import Contract
from dovetail.errors import IntegrityError, InvalidInputError, NotFoundError, OverLimitError, UnavailableError
from dovetail.fingerprint import Fingerprint
from runtime_svc.acquire.activate import Activator, Machine
from runtime_svc.acquire.backoff import Backoff
from runtime_svc.acquire.fetch import MAX_BAD_COPIES, ChunkFetcher, FetchReport, FetchSettings
from runtime_svc.acquire.local_cache import LocalCache
from runtime_svc.acquire.negotiate import OfferClient, Wish
from runtime_svc.acquire.slots import SlotStore
from runtime_svc.acquire.updater import ModelUpdater, Tools
from runtime_svc.batcher import InferenceRequest
from runtime_svc.repository import ModelState, Repository
from tests.fakes.fake_artifact_cache import FakeArtifactCache
from tests.fakes.tiny_artifacts import DigitsArtifact, digits_artifact, manifest_of, random_bytes
from tests.fixtures_node import publish

CHUNK = 64 * 1024
IMAGE = np.full((1, 1, 8, 8), 0.5, dtype=np.float32)


async def no_sleep(seconds: float) -> None:
    await asyncio.sleep(0)


def quick() -> Backoff:
    return Backoff(base_s=0.02, cap_s=0.05)


@pytest.fixture
async def channel(service: FakeArtifactCache) -> AsyncIterator[grpc.aio.Channel]:
    options = [("grpc.max_reconnect_backoff_ms", 100), ("grpc.initial_reconnect_backoff_ms", 50)]
    async with grpc.aio.insecure_channel(service.address, options=options) as opened:
        yield opened


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

    (path,) = cache.verify(manifest).values()
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

    assert cache.verify(manifest)["model.onnx"].read_bytes() == data
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
        cache.verify(manifest)


async def test_dropped_streams_resume_with_only_what_is_missing(
    service: FakeArtifactCache, channel: grpc.aio.Channel, tmp_path: Path
) -> None:
    manifest, data = blob(service, chunks=20)
    service.drop_after = [3, 0, 7, 0, 0]
    cache = LocalCache(tmp_path)

    report = await fetcher(channel, cache).fetch(manifest)

    assert cache.verify(manifest)["model.onnx"].read_bytes() == data
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

    cache.verify(manifest)
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
    cache.verify(manifest)


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

    assert cache.verify(manifest)["model.onnx"].read_bytes() == data
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

    cache.verify(manifest)
    assert set(service.sent.values()) == {1}


class Node:
    """The acquiring side of one node, without its server."""

    def __init__(
        self, root: Path, channel: grpc.aio.Channel, fingerprint: Fingerprint, *, quota_bytes: int = 0
    ) -> None:
        self.fingerprint = fingerprint
        self.available_bytes = 0
        self.cache = LocalCache(root, quota_bytes=quota_bytes)
        self.slots = SlotStore(root / "slots")
        self.repository = Repository()
        self.changes = asyncio.Condition()
        self.tools = Tools(
            offers=OfferClient(channel, Wish("test-node")),
            fetcher=ChunkFetcher(channel, self.cache, settings=FetchSettings(idle_attempts=3), backoff=quick),
            cache=self.cache,
            slots=self.slots,
            activator=Activator(self.cache, lambda: Machine(self.fingerprint, 1, lambda: self.available_bytes)),
            repository=self.repository,
            fingerprint=lambda: self.fingerprint,
            reconnect=quick,
            retry=quick,
        )
        self.updater = ModelUpdater("digits", 0, self.tools, self._changed)

    def _changed(self, model: str) -> None:
        self._pending = asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        async with self.changes:
            self.changes.notify_all()

    async def until(self, predicate: Callable[[], bool]) -> None:
        async with self.changes:
            await asyncio.wait_for(self.changes.wait_for(predicate), 20)

    async def serves(self, artifact: DigitsArtifact) -> None:
        await self.until(
            lambda: self.updater.serving is not None and self.updater.serving.manifest.artifact_key == artifact.key
        )

    async def logits(self) -> np.ndarray:  # type: ignore[type-arg]
        with self.repository.lease("digits") as model:
            return (await model.infer(InferenceRequest({"image": IMAGE})))["logits"]

    @asynccontextmanager
    async def following(self) -> AsyncIterator["Node"]:
        task = asyncio.create_task(self.updater.run())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.repository.close()


NodeMaker = Callable[..., Node]


@pytest.fixture
def make_node(tmp_path: Path, channel: grpc.aio.Channel, fingerprint: Fingerprint) -> NodeMaker:
    return lambda name="node", **options: Node(tmp_path / name, channel, fingerprint, **options)


async def test_a_node_negotiates_fetches_verifies_and_serves(service: FakeArtifactCache, make_node: NodeMaker) -> None:
    artifact = digits_artifact()
    await publish(service, artifact)

    async with make_node().following() as node:
        await node.serves(artifact)

        assert (await node.logits()).shape == (1, 10)
        assert node.repository.index()[0].state is ModelState.READY
        assert node.slots.state("digits").current == artifact.manifest.digest()
        request = service.negotiations[0]
        assert (request.model, request.node, request.order_builds) == ("digits", "test-node", True)
        assert Fingerprint.from_bytes(request.fingerprint_json) == node.fingerprint


async def test_a_better_offer_is_swapped_in_without_a_gap_and_the_one_before_stays_on_disk(
    service: FakeArtifactCache, make_node: NodeMaker, tmp_path: Path
) -> None:
    first, second, third = (digits_artifact(name=name) for name in ("ort-fp32", "ort-better", "ort-best"))
    await publish(service, first)
    async with make_node().following() as node:
        await node.serves(first)
        answers: list[bool] = []

        async def ask() -> None:
            while True:
                answers.append((await node.logits()).shape == (1, 10))

        asking = asyncio.create_task(ask())
        for better in (second, third):
            await publish(service, better)
            await node.serves(better)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

        assert answers
        assert all(answers)
        state = node.slots.state("digits")
        assert (state.current, state.previous) == (third.manifest.digest(), second.manifest.digest())
        node.cache.verify(second.manifest)
        await node.until(lambda: not (tmp_path / "node" / "manifests" / first.manifest.digest()).exists())


async def test_goldens_that_do_not_come_out_right_are_never_served_and_the_next_rung_is(
    service: FakeArtifactCache, make_node: NodeMaker
) -> None:
    bad, good = digits_artifact(name="ort-wrong", wrong_goldens=True), digits_artifact()
    await publish(service, bad, good)

    async with make_node().following() as node:
        await node.serves(good)
        await node.until(lambda: node.updater.problem != "")

        (entry,) = node.repository.index()
        assert entry.state is ModelState.READY
        assert "ort-wrong" in entry.reason
        assert "does not reproduce its goldens" in entry.reason


async def test_with_no_rung_that_works_the_model_is_unavailable_with_the_reason(
    service: FakeArtifactCache, make_node: NodeMaker
) -> None:
    await publish(service, digits_artifact(wrong_goldens=True))

    async with make_node().following() as node:
        await node.until(lambda: node.updater.problem != "")

        (entry,) = node.repository.index()
        assert entry.state is ModelState.UNAVAILABLE
        assert "does not reproduce its goldens" in entry.reason
        assert not node.repository.serves("digits")


async def test_a_bad_artifact_is_not_tried_again_until_the_offer_changes(
    service: FakeArtifactCache, make_node: NodeMaker
) -> None:
    bad = digits_artifact(model_bytes=b"not a model")
    await publish(service, bad)
    node = make_node()
    async with node.following():
        await node.until(lambda: node.updater.problem != "")
        fetched = sum(service.sent.values())

    again = make_node()
    async with again.following():
        await again.until(lambda: again.updater.problem != "")
        assert "onnxruntime cannot load" in again.updater.problem
        assert "failed here before" in again.updater.problem
        assert sum(service.sent.values()) == fetched, "nothing was fetched for an artifact that is known to be bad"

        good = digits_artifact()
        await publish(service, good)
        await again.serves(good)


async def test_a_failed_swap_leaves_the_old_one_serving(service: FakeArtifactCache, make_node: NodeMaker) -> None:
    good, broken = digits_artifact(), digits_artifact(name="ort-broken", model_bytes=b"not a model")
    await publish(service, good)
    async with make_node().following() as node:
        await node.serves(good)

        await publish(service, broken)
        await node.until(lambda: "cannot load" in node.updater.problem)

        assert (await node.logits()).shape == (1, 10)
        assert node.slots.state("digits").current == good.manifest.digest()


async def test_a_contract_that_does_not_fit_is_refused_before_anything_is_fetched(
    service: FakeArtifactCache, make_node: NodeMaker
) -> None:
    foreign = digits_artifact(contract=Contract("onnxruntime", "cpu", "fp32", arches=frozenset({"riscv64"})))
    unknown = digits_artifact(name="other-engine", contract=Contract("engine-of-tomorrow", "cpu", "fp32"))
    await publish(service, foreign, unknown)

    async with make_node().following() as node:
        await node.until(lambda: node.updater.problem != "")

        assert "riscv64" in node.updater.problem
        assert "engine-of-tomorrow" in node.updater.problem
        assert not service.sent


async def test_a_manifest_of_another_artifact_is_refused(service: FakeArtifactCache, make_node: NodeMaker) -> None:
    artifact, other = digits_artifact(), digits_artifact(name="other")
    await publish(service, artifact)
    service.replace_manifest(artifact.key, other.manifest.to_bytes())

    async with make_node().following() as node:
        await node.until(lambda: node.updater.problem != "")

        assert "got a manifest of" in node.updater.problem
        assert not service.sent


async def test_an_artifact_without_goldens_is_refused(service: FakeArtifactCache, make_node: NodeMaker) -> None:
    artifact = digits_artifact()
    files = tuple(entry for entry in artifact.manifest.files if entry.role != "goldens")
    await publish(service, DigitsArtifact(replace(artifact.manifest, files=files), artifact.files))

    async with make_node().following() as node:
        await node.until(lambda: node.updater.problem != "")
        assert "no goldens" in node.updater.problem
        assert node.updater.serving is None


async def test_too_little_memory_leaves_the_smaller_rung_serving_and_the_large_one_comes_when_there_is_room(
    service: FakeArtifactCache, make_node: NodeMaker
) -> None:
    large = digits_artifact(
        name="ort-large", contract=Contract("onnxruntime", "cpu", "fp32", min_memory_bytes=64 << 20)
    )
    small = digits_artifact()
    await publish(service, large, small)
    node = make_node()
    node.available_bytes = 32 << 20
    async with node.following():
        await node.serves(small)
        await node.until(lambda: "needs 64 MiB of memory" in node.updater.problem)

        node.available_bytes = 128 << 20
        await node.serves(large)


async def test_a_full_disk_is_told_and_what_serves_goes_on(service: FakeArtifactCache, make_node: NodeMaker) -> None:
    small, large = digits_artifact(), digits_artifact(name="ort-large", padding_bytes=4 << 20)
    await publish(service, small)
    async with make_node(quota_bytes=3 << 20).following() as node:
        await node.serves(small)
        sent = sum(service.sent.values())

        await publish(service, large)
        await node.until(lambda: "bytes more in the local cache" in node.updater.problem)

        assert sum(service.sent.values()) == sent
        assert (await node.logits()).shape == (1, 10)
        node.cache.verify(small.manifest)


async def test_a_vanished_service_changes_nothing_and_its_return_brings_the_new_offer(
    service: FakeArtifactCache, make_node: NodeMaker
) -> None:
    first, second = digits_artifact(), digits_artifact(name="ort-better")
    await publish(service, first)
    async with make_node().following() as node:
        await node.serves(first)

        await service.stop()
        assert (await node.logits()).shape == (1, 10)
        await publish(service, second)
        await service.start()

        await node.serves(second)


async def test_a_fetch_interrupted_by_the_service_is_finished_after_its_return(
    service: FakeArtifactCache, make_node: NodeMaker
) -> None:
    artifact = digits_artifact()
    await publish(service, artifact)
    service.hold_after = 10
    async with make_node().following() as node:
        await service.holding.wait()
        await service.stop()
        await node.until(lambda: any("without progress" in text for text in node.updater.refusals.values()))
        entry = artifact.manifest.files[0]
        with node.cache.open_partial(entry) as partial:
            missing = {entry.chunks[index].digest for index in partial.missing()}
        in_flight = set(service.sent) & missing
        service.hold_after = None
        await service.start()

        await node.serves(artifact)
    assert {digest for digest, count in service.sent.items() if count > 1} == in_flight


async def test_a_new_version_replaces_the_old_one(service: FakeArtifactCache, make_node: NodeMaker) -> None:
    first, second = digits_artifact(), digits_artifact(version=2)
    await publish(service, first)
    async with make_node().following() as node:
        await node.serves(first)
        service.publish(second.manifest, second.files)
        await service.offer("digits", second.key, version=2)
        await node.serves(second)

        assert node.repository.resolve("digits").facts.version == 2
        assert [model.facts.version for model in node.repository.serving()] in ([2], [1, 2])


async def test_offline_start_serves_what_was_last_verified(service: FakeArtifactCache, make_node: NodeMaker) -> None:
    artifact = digits_artifact()
    await publish(service, artifact)
    async with make_node().following() as node:
        await node.serves(artifact)
    await service.stop()

    alone = make_node()
    assert await alone.updater.start_from_disk()

    assert (await alone.logits()).shape == (1, 10)
    await alone.repository.close()


def spoil(node: Node, artifact: DigitsArtifact, name: str = "model.onnx") -> None:
    (entry,) = (entry for entry in artifact.manifest.files if entry.name == name)
    path = node.cache.path(entry.digest)
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


async def two_slots(service: FakeArtifactCache, make_node: NodeMaker) -> tuple[DigitsArtifact, DigitsArtifact]:
    """A node that served one artifact and then another; they share no file."""
    padded = digits_artifact(model_bytes=digits_artifact().files["model.onnx"] + b"\x72\x00")  # an empty metadata entry
    first, second = digits_artifact(), padded
    async with make_node().following() as node:
        for artifact in (first, second):
            await publish(service, artifact)
            await node.serves(artifact)
    return first, second


async def test_a_damaged_current_artifact_gives_way_to_the_previous_one_at_start(
    service: FakeArtifactCache, make_node: NodeMaker
) -> None:
    first, second = await two_slots(service, make_node)
    node = make_node()
    spoil(node, second)

    assert await node.updater.start_from_disk()

    assert node.updater.serving is not None
    assert node.updater.serving.manifest.artifact_key == first.key
    await node.repository.close()


async def test_a_damaged_artifact_is_repaired_by_fetching_only_its_bad_chunk(
    service: FakeArtifactCache, make_node: NodeMaker
) -> None:
    _, second = await two_slots(service, make_node)
    node = make_node()
    spoil(node, second)
    await node.updater.start_from_disk()
    service.sent.clear()

    async with node.following():
        await node.serves(second)

    assert sum(service.sent.values()) == 1


async def test_two_damaged_artifacts_leave_a_reason_and_nothing_served(
    service: FakeArtifactCache, make_node: NodeMaker
) -> None:
    first, second = await two_slots(service, make_node)
    node = make_node()
    spoil(node, first)
    spoil(node, second)

    assert not await node.updater.start_from_disk()

    (entry,) = node.repository.index()
    assert entry.state is ModelState.UNAVAILABLE
    assert "nothing on this machine can be served" in entry.reason
    assert "changed on disk" in entry.reason


async def test_an_artifact_that_killed_the_process_three_times_is_not_loaded_again(
    service: FakeArtifactCache, make_node: NodeMaker
) -> None:
    first, second = await two_slots(service, make_node)
    node = make_node()
    for _ in range(3):
        node.slots.write(node.slots.state("digits").begun(second.manifest.digest()))

    assert await node.updater.start_from_disk()

    assert node.updater.serving is not None
    assert node.updater.serving.manifest.artifact_key == first.key
    assert node.slots.state("digits").why_bad(second.manifest.digest())
    await node.repository.close()


async def test_a_start_of_every_kind_that_fails_raises_its_own_error(
    service: FakeArtifactCache, make_node: NodeMaker
) -> None:
    node = make_node()
    artifact = digits_artifact()
    stored = node.cache.put_manifest(artifact.manifest.to_bytes())
    with pytest.raises(NotFoundError):
        await node.tools.activator.activate(stored)

    garbage = DigitsArtifact(
        manifest_of({"model.onnx": artifact.files["model.onnx"], "goldens.npz": b"garbage"}, chunk_bytes=CHUNK),
        {"model.onnx": artifact.files["model.onnx"], "goldens.npz": b"garbage"},
    )
    await publish(service, garbage)
    await node.tools.fetcher.fetch(garbage.manifest)
    with pytest.raises(InvalidInputError, match="goldens file is not readable"):
        await node.tools.activator.activate(node.cache.put_manifest(garbage.manifest.to_bytes()))

    node.available_bytes = 1
    needy = replace(artifact.manifest, contract=Contract("onnxruntime", "cpu", "fp32", min_memory_bytes=1 << 20))
    await publish(service, DigitsArtifact(needy, artifact.files))
    await node.tools.fetcher.fetch(needy)
    with pytest.raises(OverLimitError, match="free"):
        await node.tools.activator.activate(node.cache.put_manifest(needy.to_bytes()))


class PowerCut(BaseException):
    """The machine is gone; nothing catches it."""


class Disk:
    """Counts what changes the disk, and cuts the power before one of those calls and at every later one."""

    CALLS = ("replace", "pwrite", "fsync", "fdatasync", "posix_fallocate", "unlink", "rmdir", "mkdir", "ftruncate")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cut_at: int) -> None:
        self.count = 0
        self.cut_at = cut_at
        self.on = True
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self._guarded(getattr(os, name)))

    def _guarded(self, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            if self.on:
                self.count += 1
                if self.count >= self.cut_at:
                    raise PowerCut
            return real(*arguments, **options)

        return call


async def swap_with_power_cut(node: Node, monkeypatch: pytest.MonkeyPatch, cut_at: int) -> bool:
    """Start from disk, then follow the offer; returns True if the power was cut on the way."""
    with monkeypatch.context() as patch:
        disk = Disk(patch, cut_at)
        ladder = await anext(node.tools.offers.watch("digits", 0, node.fingerprint))
        try:
            await node.updater.start_from_disk()
            await node.updater._climb(ladder)
        except PowerCut:
            return True
        finally:
            disk.on = False
        return False


async def test_a_power_cut_before_any_disk_operation_of_a_swap_leaves_something_that_serves(
    service: FakeArtifactCache, make_node: NodeMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second = digits_artifact(), digits_artifact(name="ort-better", padding_bytes=2 * CHUNK)
    await publish(service, first)
    async with make_node("origin").following() as node:
        await node.serves(first)
    await publish(service, second)
    cut_at, cuts, seen = 1, 0, set()
    while True:
        shutil.copytree(tmp_path / "origin", tmp_path / str(cut_at))
        cut = await swap_with_power_cut(make_node(str(cut_at)), monkeypatch, cut_at)

        after = make_node(str(cut_at))
        assert await after.updater.start_from_disk(), f"nothing serves after a power cut at operation {cut_at}"
        assert (await after.logits()).shape == (1, 10)
        assert after.updater.serving is not None
        seen.add(after.updater.serving.manifest.artifact_key)
        await after.repository.close()
        shutil.rmtree(tmp_path / str(cut_at))
        if not cut:
            break
        cuts, cut_at = cuts + 1, cut_at + 1 if cut_at < 30 else cut_at + 3
    assert cuts > 20
    assert seen == {first.key, second.key}
