# SPDX-License-Identifier: Apache-2.0
"""Which models a node serves when callers load, unload and pin versions."""

import asyncio
from collections.abc import AsyncIterator

import grpc.aio
import pytest

from dovetail.errors import NotFoundError
from dovetail.fingerprint import Fingerprint
from runtime_svc.acquire.backoff import Backoff
from runtime_svc.acquire.roster import Roster, Wanted
from runtime_svc.acquire.updater import Tools
from runtime_svc.node_report import NodeIdentity, NodeReporter
from runtime_svc.repository import ModelState
from tests.fakes.fake_artifact_cache import FakeArtifactCache
from tests.fakes.tiny_artifacts import digits_artifact
from tests.fixtures_node import publish


@pytest.fixture
async def roster(tools: Tools) -> AsyncIterator[Roster]:
    roster = Roster(Wanted({}), tools)
    task = asyncio.create_task(roster.run())
    yield roster
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_load_returns_when_the_model_serves(service: FakeArtifactCache, roster: Roster, tools: Tools) -> None:
    await publish(service, digits_artifact())

    await roster.load("digits", None)

    assert tools.repository.serves("digits")
    assert [updater.model for updater in roster.updaters] == ["digits"]


async def test_loading_what_serves_already_is_harmless(
    service: FakeArtifactCache, roster: Roster, tools: Tools
) -> None:
    await publish(service, digits_artifact())
    await roster.load("digits", None)
    serving = tools.repository.resolve("digits")

    await roster.load("digits", None)

    assert tools.repository.resolve("digits") is serving


async def test_pinning_another_version_asks_for_it_and_replaces_the_old_one(
    service: FakeArtifactCache, roster: Roster, tools: Tools
) -> None:
    await publish(service, digits_artifact())
    await roster.load("digits", None)
    await publish(service, digits_artifact(version=2))

    await roster.load("digits", 2)

    assert tools.repository.resolve("digits").facts.version == 2
    assert [request.version for request in service.negotiations] == [0, 2]


async def test_a_model_that_cannot_be_loaded_raises_why(service: FakeArtifactCache, roster: Roster) -> None:
    with pytest.raises(NotFoundError, match="failed to load 'nobody'"):
        await roster.load("nobody", None)


async def test_unload_takes_it_out_and_an_unknown_one_is_told(
    service: FakeArtifactCache, roster: Roster, tools: Tools
) -> None:
    await publish(service, digits_artifact())
    await roster.load("digits", None)

    await roster.unload("digits")

    assert not tools.repository.serves("digits")
    with pytest.raises(NotFoundError):
        await roster.unload("digits")


@pytest.mark.parametrize(("wanted", "ready"), [(Wanted({}, everything=True), True), (Wanted({"nan": 0}), False)])
async def test_only_a_model_that_was_asked_for_by_name_takes_the_node_out_if_nothing_fits(
    service: FakeArtifactCache, tools: Tools, wanted: Wanted, ready: bool
) -> None:
    await service.offer("nan")
    roster = Roster(wanted, tools, poll_s=0.02)
    task = asyncio.create_task(roster.run())
    async with asyncio.timeout(20):
        while not roster.updaters or "no artifact fits" not in roster.updaters[0].problem:
            await asyncio.sleep(0.01)

    assert tools.repository.ready() is ready

    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_announced_models_keep_the_node_from_being_ready_until_they_serve(
    service: FakeArtifactCache, tools: Tools
) -> None:
    await publish(service, digits_artifact())
    roster = Roster(Wanted({"digits": 0}), tools)
    assert tools.repository.ready()

    await roster.announce()

    assert not tools.repository.ready()
    assert [(entry.name, entry.state) for entry in tools.repository.index()] == [("digits", ModelState.LOADING)]


async def test_every_change_is_reported_with_what_serves_and_why_not(
    service: FakeArtifactCache, tools: Tools, fingerprint: Fingerprint
) -> None:
    await publish(service, digits_artifact(wrong_goldens=True))
    async with grpc.aio.insecure_channel(service.address) as channel:
        identity = NodeIdentity("node-1", "runtime", "127.0.0.1:1")
        roster = Roster(Wanted({"digits": 0}), tools, on_change=lambda: reporter.notice_change())
        reporter = NodeReporter(
            channel, identity, fingerprint=lambda: fingerprint, updaters=lambda: roster.updaters
        )  # fmt: skip
        tasks = [asyncio.create_task(roster.run()), asyncio.create_task(reporter.run())]

        bad = await service.wait_for_node(lambda node: any(item.state == "UNAVAILABLE" for item in node.serving))
        await publish(service, digits_artifact(name="ort-good"))
        good = await service.wait_for_node(lambda node: any(item.state == "READY" for item in node.serving))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    assert "does not reproduce its goldens" in bad.serving[0].reason
    assert (good.serving[0].recipe, good.serving[0].version, good.serving[0].reason) == ("ort-good", 1, "")
    assert Fingerprint.from_bytes(good.fingerprint_json) == fingerprint


async def test_a_reporter_outlives_its_service(
    service: FakeArtifactCache, tools: Tools, fingerprint: Fingerprint
) -> None:
    async with grpc.aio.insecure_channel(service.address) as channel:
        reporter = NodeReporter(
            channel,
            NodeIdentity("node-1", "edge", "127.0.0.1:1"),
            fingerprint=lambda: fingerprint,
            updaters=tuple,
            backoff=Backoff(base_s=0.02, cap_s=0.05),
        )
        task = asyncio.create_task(reporter.run())
        await service.wait_for_node(lambda node: True)
        await service.stop()
        service.nodes.clear()
        await service.start()

        await service.wait_for_node(lambda node: node.id == "node-1")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
