# SPDX-License-Identifier: Apache-2.0
"""Following offers over real gRPC: fetch, verify, swap, and what happens when a rung does not work."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from dovetail.contract import Contract
from dovetail.fingerprint import Fingerprint
from runtime_svc.repository import ModelState
from tests.fakes.acquiring_node import NodeMaker, contents
from tests.fakes.fake_artifact_cache import FakeArtifactCache
from tests.fakes.tiny_artifacts import DigitsArtifact, digits_artifact
from tests.fixtures_node import publish

CHUNK = 64 * 1024


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
        contents(node.cache, second.manifest)
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
        contents(node.cache, small.manifest)


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
