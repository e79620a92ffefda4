# SPDX-License-Identifier: Apache-2.0
"""What a node has on its disk when it starts: whole, damaged, half written, or good for nothing."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dovetail.artifact import Manifest
from dovetail.contract import Contract
from dovetail.errors import InvalidInputError, NotFoundError, OverLimitError
from runtime_svc.acquire.local_cache import StoredManifest
from runtime_svc.acquire.slots import SlotStore
from runtime_svc.repository import ModelState
from runtime_svc.served_model import ServedModel
from tests.fakes.acquiring_node import AcquiringNode, NodeMaker
from tests.fakes.fake_artifact_cache import FakeArtifactCache
from tests.fakes.signing import signed
from tests.fakes.tiny_artifacts import DigitsArtifact, digits_artifact, manifest_of
from tests.fixtures_node import publish

CHUNK = 64 * 1024


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


def spoil(node: AcquiringNode, artifact: DigitsArtifact, name: str = "model.onnx") -> None:
    (entry,) = (entry for entry in artifact.manifest.files if entry.name == name)
    path = node.cache.path(entry.digest)
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def keep(node: AcquiringNode, manifest: Manifest) -> StoredManifest:
    """A manifest as it is on disk after it was offered."""
    return node.cache.put_manifest(manifest.to_bytes(), signed(manifest.to_bytes()))


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
    stored = keep(node, artifact.manifest)
    with pytest.raises(NotFoundError):
        await node.tools.activator.activate(stored)

    garbage = DigitsArtifact(
        manifest_of({"model.onnx": artifact.files["model.onnx"], "goldens.npz": b"garbage"}, chunk_bytes=CHUNK),
        {"model.onnx": artifact.files["model.onnx"], "goldens.npz": b"garbage"},
    )
    await publish(service, garbage)
    await node.tools.fetcher.fetch(garbage.manifest)
    with pytest.raises(InvalidInputError, match="goldens file is not readable"):
        await node.tools.activator.activate(keep(node, garbage.manifest))

    node.available_bytes = 1
    needy = replace(artifact.manifest, contract=Contract("onnxruntime", "cpu", "fp32", min_memory_bytes=1 << 20))
    await publish(service, DigitsArtifact(needy, artifact.files))
    await node.tools.fetcher.fetch(needy)
    with pytest.raises(OverLimitError, match="free"):
        await node.tools.activator.activate(keep(node, needy))


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


async def swap_with_power_cut(node: AcquiringNode, monkeypatch: pytest.MonkeyPatch, cut_at: int) -> bool:
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


async def test_what_serves_is_on_disk_before_anyone_can_see_that_it_serves(
    service: FakeArtifactCache, make_node: NodeMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else a node that is stopped the moment it is ready starts with nothing, or with what it served before."""
    artifact = digits_artifact()
    await publish(service, artifact)
    node = make_node()
    on_disk: list[str] = []
    install = node.repository.install

    def look_and_install(model: ServedModel) -> None:
        on_disk.append(SlotStore(tmp_path / "node" / "slots").state("digits").current)
        install(model)

    monkeypatch.setattr(node.repository, "install", look_and_install)
    async with node.following():
        await node.serves(artifact)

    assert on_disk == [artifact.manifest.digest()]


async def test_a_model_that_comes_up_while_the_node_shuts_down_is_closed_and_serves_at_the_next_start(
    service: FakeArtifactCache, make_node: NodeMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = digits_artifact()
    await publish(service, artifact)
    node = make_node()
    closed: list[ServedModel] = []
    close = ServedModel.close

    async def close_and_note(model: ServedModel) -> None:
        await close(model)
        closed.append(model)

    monkeypatch.setattr(ServedModel, "close", close_and_note)
    await node.repository.close()
    ladder = await anext(node.tools.offers.watch("digits", 0, node.fingerprint))

    await node.updater._climb(ladder)

    assert [model.facts.artifact_key for model in closed] == [artifact.key]
    after = make_node()
    assert await after.updater.start_from_disk()
    await after.repository.close()
