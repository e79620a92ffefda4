# SPDX-License-Identifier: Apache-2.0
"""The edge agent as a real process: online, killed, damaged, alone, and small."""

import asyncio
import signal
from pathlib import Path

import numpy as np
import pytest

from dovetail.pb import oip
from runtime_svc.acquire.local_cache import LocalCache
from tests.fakes.fake_artifact_cache import FakeArtifactCache
from tests.fakes.node_process import NodeProcess
from tests.fakes.tiny_artifacts import EXAMPLES, digits_artifact
from tests.fixtures_node import publish

MAX_IDLE_RSS_BYTES = 120_000_000
MAX_OFFLINE_START_CPU_S = 2.0


@pytest.fixture
def agent(service: FakeArtifactCache, tmp_path: Path) -> NodeProcess:
    return NodeProcess("edge_agent", tmp_path / "agent", service.address, "--node", "device-7")


async def until_a_chunk_is_kept(bitmap: Path) -> None:
    """Another process keeps it, so its file is looked at."""
    async with asyncio.timeout(30):
        while not any(bitmap.read_bytes()):
            await asyncio.sleep(0.01)


async def accuracy(agent: NodeProcess) -> float:
    with np.load(EXAMPLES / "heldout.npz", allow_pickle=False) as samples:
        images, labels = samples["image"], samples["label"]
    scores = np.concatenate([await agent.infer(images[start : start + 8]) for start in range(0, len(images), 8)])
    return float(np.mean(np.argmax(scores, axis=1) == labels))


async def test_the_agent_serves_what_it_was_offered_and_reports_itself(
    service: FakeArtifactCache, agent: NodeProcess
) -> None:
    artifact = digits_artifact()
    await publish(service, artifact)

    async with agent.running():
        await agent.until_ready()

        assert await accuracy(agent) > 0.95
        node = await service.wait_for_node(lambda node: any(item.state == "READY" for item in node.serving))
        assert (node.id, node.role, node.address) == ("device-7", "edge", agent.address)
        assert node.serving[0].artifact_key == artifact.key
        assert node.fingerprint_json
        assert await agent.stop() == 0


async def test_an_agent_killed_while_fetching_fetches_only_what_was_in_flight_again(
    service: FakeArtifactCache, agent: NodeProcess, tmp_path: Path
) -> None:
    artifact = digits_artifact(padding_bytes=4 << 20)
    entry = artifact.manifest.files[0]
    await publish(service, artifact)
    service.hold_after = 15
    async with agent.running():
        await service.holding.wait()
        await until_a_chunk_is_kept(tmp_path / "agent" / "partial" / entry.digest / "bitmap")
        await agent.stop(signal.SIGKILL)
    with LocalCache(tmp_path / "agent").open_partial(entry) as partial:
        missing = {entry.chunks[index].digest for index in partial.missing()}
    in_flight = set(service.sent) & missing
    service.hold_after = None

    async with agent.running():
        await agent.until_ready()

    assert {digest for digest, count in service.sent.items() if count > 1} == in_flight
    assert len(in_flight) < 15, "what had arrived before the kill was kept"
    assert artifact.manifest.chunk_digests() <= set(service.sent)


async def test_a_restart_without_any_network_serves_from_disk_within_two_seconds_of_work(
    service: FakeArtifactCache, agent: NodeProcess
) -> None:
    await publish(service, digits_artifact())
    async with agent.running():
        await agent.until_ready()
        await agent.stop()
    await service.stop()

    async with agent.running():
        await agent.until_ready()
        cpu_s = agent.cpu_s()  # the time on the clock depends on what else this machine does

        assert await accuracy(agent) > 0.95
        assert cpu_s < MAX_OFFLINE_START_CPU_S


async def test_an_idle_agent_with_onnxruntime_loaded_stays_small(
    service: FakeArtifactCache, agent: NodeProcess
) -> None:
    await publish(service, digits_artifact())

    async with agent.running():
        await agent.until_ready()
        await service.wait_for_node(lambda node: any(item.state == "READY" for item in node.serving))

        assert agent.resident_bytes() < MAX_IDLE_RSS_BYTES


async def test_the_service_dies_and_the_agent_keeps_serving_and_follows_again_when_it_returns(
    service: FakeArtifactCache, agent: NodeProcess
) -> None:
    first, second = digits_artifact(), digits_artifact(name="ort-better")
    await publish(service, first)
    async with agent.running():
        await agent.until_ready()

        await service.stop()
        assert (await agent.infer(np.zeros((1, 1, 8, 8), np.float32))).shape == (1, 10)
        service.nodes.clear()
        await publish(service, second)
        await service.start()

        await service.wait_for_node(lambda node: [item.artifact_key for item in node.serving] == [second.key])


async def test_a_device_whose_artifacts_are_all_damaged_is_live_and_says_why(
    service: FakeArtifactCache, agent: NodeProcess, tmp_path: Path
) -> None:
    await publish(service, digits_artifact())
    async with agent.running():
        await agent.until_ready()
        await agent.stop()
    await service.stop()
    for path in (tmp_path / "agent" / "cas").rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            path.write_bytes(b"")

    async with agent.running():
        line = await agent.until_indexed("UNAVAILABLE", "changed on disk")

        assert line.name == "digits"
        assert (await agent.ask("ServerLive", oip.ServerLiveRequest())).live


async def test_garbage_in_every_file_of_the_data_directory_does_not_stop_the_agent(
    service: FakeArtifactCache, agent: NodeProcess, tmp_path: Path
) -> None:
    await publish(service, digits_artifact())
    async with agent.running():
        await agent.until_ready()
        await agent.stop()
    for path in (tmp_path / "agent").rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            path.write_bytes(b"\xa5" * 37)

    async with agent.running():
        await agent.until_ready()

        assert await accuracy(agent) > 0.95


async def test_a_second_agent_on_the_same_data_is_refused(
    service: FakeArtifactCache, agent: NodeProcess, tmp_path: Path
) -> None:
    await publish(service, digits_artifact())
    async with agent.running():
        second = NodeProcess("edge_agent", tmp_path / "agent", service.address)
        with pytest.raises(AssertionError, match=r"(?s)exited with 1.*another node uses this data directory"):
            async with second.running():
                pass
