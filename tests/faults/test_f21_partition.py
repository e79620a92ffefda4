# SPDX-License-Identifier: Apache-2.0
"""F21: a device is cut off for thirty days while its model is registered anew again and again.

It serves all the time; when it is back, one reconciliation brings it straight to the newest, and nothing in between is
fetched, loaded or even asked for.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from runtime_svc.acquire.backoff import Backoff
from runtime_svc.acquire.updater import ModelUpdater
from tests.fakes.acquiring_node import AcquiringNode, NodeMaker
from tests.fakes.answering_artifacts import answering, who_answered
from tests.fakes.fake_artifact_cache import FakeArtifactCache
from tests.fakes.tiny_artifacts import DigitsArtifact
from tests.fixtures_node import publish

DAYS = 30
DAY_S = 86_400
CAP_S = 3600.0


def version(number: int) -> DigitsArtifact:
    return answering(number, version=number, padding_bytes=5000)


async def register(service: FakeArtifactCache, number: int) -> None:
    """Another version of the model, offered as the newest."""
    service.publish(version(number).manifest, version(number).files)
    await service.offer("digits", version(number).key, version=number)


def only_of(number: int) -> frozenset[str]:
    """Chunks of that version that version 1 does not have."""
    return version(number).manifest.chunk_digests() - version(1).manifest.chunk_digests()


class Calendar:
    """Lets days pass: whoever waits has waited."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.longest_s = 0.0

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.longest_s = max(self.longest_s, seconds)
        await asyncio.sleep(0)

    def backoff(self) -> Backoff:
        return Backoff(base_s=0.5, cap_s=CAP_S, sleep=self.sleep)


def on_calendar(node: AcquiringNode, calendar: Calendar) -> AcquiringNode:
    """The same node, whose pauses between attempts to reach the service take no time."""
    tools = replace(node.tools, reconnect=calendar.backoff)
    node.updater = ModelUpdater("digits", 0, tools, node._changed)
    return node


async def test_a_device_cut_off_for_thirty_days_serves_and_then_goes_straight_to_the_newest(
    service: FakeArtifactCache, make_node: NodeMaker
) -> None:
    await register(service, 1)
    calendar, registered, answers = Calendar(), 1, 0
    node = on_calendar(make_node(), calendar)
    async with node.following():
        await node.serves(version(1))
        await service.stop()
        service.negotiations.clear()
        service.sent.clear()
        async with asyncio.timeout(120):
            while calendar.now_s < DAYS * DAY_S:
                if calendar.now_s > registered * DAY_S:
                    registered += 1
                    await register(service, registered)
                assert who_answered(await node.logits(), (1,)) == 1
                answers += 1
                await asyncio.sleep(0.001)

        await service.start()
        await node.serves(version(registered))

        assert who_answered(await node.logits(), (registered,)) == registered
    assert registered >= DAYS // 2
    assert answers > DAYS
    assert set(service.sent) == only_of(registered), "nothing in between was fetched"
    assert len(service.negotiations) == 1, "one reconciliation"
    assert calendar.longest_s <= CAP_S, "however long it was away, it is back within one pause"


async def test_a_device_switched_off_for_thirty_days_starts_with_what_it_had_and_takes_only_the_newest(
    service: FakeArtifactCache, make_node: NodeMaker
) -> None:
    await register(service, 1)
    async with make_node().following() as node:
        await node.serves(version(1))
    for number in range(2, DAYS + 1):
        await register(service, number)
    service.sent.clear()
    service.negotiations.clear()

    node = make_node()
    assert await node.updater.start_from_disk()
    assert who_answered(await node.logits(), (1,)) == 1
    async with node.following():
        await node.serves(version(DAYS))
        assert who_answered(await node.logits(), (DAYS,)) == DAYS

    assert set(service.sent) == only_of(DAYS)
    assert len(service.negotiations) == 1


async def test_a_device_whose_model_was_deleted_meanwhile_goes_on_serving_it(
    service: FakeArtifactCache, make_node: NodeMaker
) -> None:
    await publish(service, version(1))
    async with make_node().following() as node:
        await node.serves(version(1))
    service.forget("digits")

    node = make_node()
    assert await node.updater.start_from_disk()
    async with node.following():
        await node.updater.settled()

        assert who_answered(await node.logits(), (1,)) == 1
