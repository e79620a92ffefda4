# SPDX-License-Identifier: Apache-2.0
"""F15: an agent is killed while it downloads, at any byte, again and again."""

import asyncio
import os
import random
import signal
from pathlib import Path

import grpc.aio

from dovetail.artifact import Manifest
from runtime_svc.acquire.local_cache import LocalCache
from tests.fakes.acquiring_node import contents
from tests.fakes.answering_artifacts import IMAGE, answering, who_answered
from tests.fakes.fake_artifact_cache import FakeArtifactCache
from tests.fakes.link import Link
from tests.fakes.node_nursery import Nursery, nursery
from tests.fakes.node_process import NodeProcess
from tests.fakes.node_works import WINDOW_BYTES
from tests.fakes.tiny_artifacts import manifest_of, random_bytes
from tests.faults.seeds import replayable, seeds, session_seed
from tests.fixtures_node import publish

SEEDS = 30
QUIET = {"DOVETAIL_MEASURE": "no"}
CHUNK = 16 * 1024
CHUNKS_HELD = 4  # one that arrives, one or two that wait for their turn, one that is written: fetch.py, partial.py
TALK_BYTES = 8192  # headers, settings and pings of one connection, and gRPC's frame of each chunk


async def kill_at(byte: int, link: Link, young: Nursery, **arguments: str) -> int:
    """Start a fetch and kill it when that many more bytes have reached it; returns its exit code."""
    child = await young.start("fetch", address=link.address, **arguments)
    link.at_byte, link.then = link.down_bytes + byte, child.kill
    code = await child.code()
    link.at_byte = None
    return code


async def fetch_with_kills(seed: int, link: Link, young: Nursery, manifest: Manifest, root: Path) -> int:
    """Fetch with up to four kills at random bytes; returns how many there were."""
    rng = random.Random(seed)
    size_bytes = manifest.files[0].size_bytes
    path = root.with_suffix(".json")
    path.write_bytes(manifest.to_bytes())
    kills, before = 0, link.down_bytes
    while True:
        byte = rng.randrange(size_bytes // 2) if kills < 4 else 1 << 62
        code = await kill_at(byte, link, young, root=str(root), manifest=str(path))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    spent = link.down_bytes - before
    in_flight = WINDOW_BYTES + CHUNKS_HELD * CHUNK + TALK_BYTES
    assert spent <= size_bytes + kills * in_flight + TALK_BYTES
    return kills


async def test_a_fetch_killed_at_random_bytes_costs_only_what_was_in_flight(
    service: FakeArtifactCache, tmp_path: Path
) -> None:
    kills, chosen = 0, seeds(SEEDS)
    async with Link(service.address).running() as link, nursery() as young:
        for seed in chosen:
            data = random_bytes(40 * CHUNK, seed)
            manifest = manifest_of({"model.onnx": data}, chunk_bytes=CHUNK)
            service.publish(manifest, {"model.onnx": data})
            root = tmp_path / str(seed)

            with replayable(seed):
                kills += await fetch_with_kills(seed, link, young, manifest, root)

                assert contents(LocalCache(root), manifest)["model.onnx"] == data
                assert list((root / "partial").iterdir()) == []
    assert kills >= len(chosen)


async def ask_until_gone(agent: NodeProcess) -> int:
    """Ask without a pause until nobody answers; every answer must be right. Returns how many there were."""
    answers = 0
    while True:
        try:
            logits = await agent.infer(IMAGE)
        except grpc.aio.AioRpcError:
            return answers
        who_answered(logits, range(1, 4))
        answers += 1


async def test_an_agent_killed_while_it_fetches_an_update_serves_right_answers_after_every_start(
    service: FakeArtifactCache, tmp_path: Path
) -> None:
    """It is killed at a random byte of what it is sent, and asked at once after it is started again."""
    rng = random.Random(seed := session_seed())
    artifacts = [answering(number, version=number, padding_bytes=300_000) for number in range(1, 4)]
    await publish(service, artifacts[0])
    async with Link(service.address).running() as link:
        agent = NodeProcess("edge_agent", tmp_path / "agent", link.address)
        async with agent.running(**QUIET):
            await agent.until_ready()
        for artifact in artifacts[1:]:
            service.publish(artifact.manifest, artifact.files)
            await service.offer("digits", artifact.key, version=artifact.manifest.version)
            link.up.clear()
            async with agent.running(**QUIET):
                await agent.until_ready()
                with replayable(seed):
                    assert who_answered(await agent.infer(IMAGE), range(1, 4)) <= artifact.manifest.version
                link.at_byte = link.down_bytes + rng.randrange(300_000)
                link.then = lambda: os.kill(agent.pid, signal.SIGKILL)
                link.up.set()
                answers, code = await asyncio.gather(ask_until_gone(agent), agent.wait())
            assert answers > 0
            assert code == -signal.SIGKILL
        async with agent.running(**QUIET), asyncio.timeout(60):
            await agent.until_ready()
            while who_answered(await agent.infer(IMAGE), range(1, 4)) != 3:
                await asyncio.sleep(0.01)
