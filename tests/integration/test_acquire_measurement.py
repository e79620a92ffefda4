# SPDX-License-Identifier: Apache-2.0
"""A node measures what nobody measured on machines like it, once, and tells; callers and restarts do not notice."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import grpc.aio
import numpy as np
import pytest

from dovetail.artifact import Manifest
from dovetail.benchmark import BenchmarkRecord
from dovetail.candidate import Candidate
from dovetail.contract import Contract
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import hardware_class
from dovetail.negotiation import negotiate
from dovetail.pb.v1 import artifacts_pb2
from dovetail.probe import measure
from dovetail.rules.onnxruntime_recipes import static_flavour
from tests.fakes.compiler_mesh import compiler_mesh, worker
from tests.fakes.fake_artifact_cache import FakeArtifactCache
from tests.fakes.measuring_node import MeasuringNode
from tests.fakes.node_process import NodeProcess
from tests.fakes.tiny_artifacts import DigitsArtifact, digits_artifact

IMAGES = np.linspace(0, 1, 8 * 64, dtype=np.float32).reshape(8, 1, 8, 8)


@pytest.fixture
async def service() -> AsyncIterator[FakeArtifactCache]:
    async with FakeArtifactCache() as fake:
        yield fake


@pytest.fixture(scope="module")
def fingerprint() -> Fingerprint:
    return asyncio.run(measure())


NodeMaker = Callable[..., MeasuringNode]


@pytest.fixture
async def make_node(
    tmp_path: Path, service: FakeArtifactCache, fingerprint: Fingerprint
) -> AsyncIterator[Callable[[], MeasuringNode]]:
    async with grpc.aio.insecure_channel(service.address) as channel:
        yield lambda: MeasuringNode(tmp_path / "node", channel, fingerprint)


async def publish(service: FakeArtifactCache, *artifacts: DigitsArtifact) -> None:
    for artifact in artifacts:
        service.publish(artifact.manifest, artifact.files)
    await service.offer("digits", *(artifact.key for artifact in artifacts))


async def test_what_nobody_measured_on_this_class_is_measured_and_reported_once(
    service: FakeArtifactCache, make_node: NodeMaker
) -> None:
    artifact, rung = digits_artifact(), digits_artifact(name="ort-rung")
    await publish(service, artifact, rung)

    async with make_node().running() as node:
        await service.wait_for_benchmarks(1)
        executions = node.executions()
        here = hardware_class(node.fingerprint).key

        ((key, record),) = service.reported
        assert key == artifact.key, "what serves is measured, not the whole ladder"
        assert (record.hardware_class, record.reported_by, record.threads, record.batch) == (here, "node-1", 1, 1)
        assert record.windows >= 3
        assert record.samples >= 15
        assert 0 < record.p50_ms <= record.p95_ms <= record.p99_ms
        assert record.load_ms > 0
        assert record.baseline_p50_ms == 0
        assert executions == 0, "a measurement does not count as traffic"

        other = digits_artifact(name="ort-other")  # the same offer again, then another artifact
        await publish(service, artifact, other)
        await publish(service, other)
        await service.wait_for_benchmarks(2)
        assert [key for key, _ in service.reported] == [artifact.key, other.key]


async def test_what_the_offer_says_is_measured_is_left_alone(service: FakeArtifactCache, make_node: NodeMaker) -> None:
    known, unknown = digits_artifact(), digits_artifact(name="ort-unknown")
    service.measured.add(known.key)
    await publish(service, known)

    async with make_node().running() as node:
        await node.serves(known.key)
        assert node.updater.unmeasured is None
        await publish(service, unknown)
        await service.wait_for_benchmarks(1)

        assert [key for key, _ in service.reported] == [unknown.key]


async def test_a_restart_tells_the_figures_of_before_and_does_not_measure_again(
    service: FakeArtifactCache, make_node: NodeMaker
) -> None:
    await publish(service, digits_artifact())
    async with make_node().running():
        await service.wait_for_benchmarks(1)

    async with make_node().running():
        await service.wait_for_benchmarks(2)

    first, again = service.reported
    assert first == again, "the very same record, with its time"


async def test_a_service_that_takes_no_figures_is_asked_again_and_the_model_serves_meanwhile(
    service: FakeArtifactCache, make_node: NodeMaker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    service.mute = True
    await publish(service, digits_artifact())

    async with make_node().running() as node:
        async with asyncio.timeout(30):
            while sum("measurement.later" in message for message in caplog.messages) < 2:
                await asyncio.sleep(0.01)
        assert (await node.logits(IMAGES[:1])).shape == (1, 10)
        service.mute = False
        await service.wait_for_benchmarks(1)

    assert sum("measurement.done" in message for message in caplog.messages) == 1


async def test_requests_during_a_measurement_get_their_own_right_answers(
    service: FakeArtifactCache, make_node: NodeMaker
) -> None:
    artifact = digits_artifact()
    service.measured.add(artifact.key)
    await publish(service, artifact)
    async with make_node().running() as node:
        await node.serves(artifact.key)
        expected = [await node.logits(image[None]) for image in IMAGES]
        before = node.executions()

        service.measured.clear()
        await publish(service, artifact)
        asked = 0
        while not service.reported:
            await asyncio.sleep(0.02)  # few enough requests that the measurement goes on beside them
            got = await node.logits(IMAGES[asked % 8][None])
            np.testing.assert_allclose(got, expected[asked % 8], rtol=1e-6)
            asked += 1

        assert asked > 0
        assert node.executions() - before == asked


async def test_while_callers_keep_the_engine_the_measurement_waits_and_is_made_up_for_later(
    service: FakeArtifactCache, make_node: NodeMaker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    artifact = digits_artifact()
    service.measured.add(artifact.key)
    await publish(service, artifact)
    async with make_node().running() as node:
        await node.serves(artifact.key)

        async def keep_asking() -> None:
            while True:
                await node.logits(IMAGES)

        asking = asyncio.create_task(keep_asking())
        service.measured.clear()
        await publish(service, artifact)
        async with asyncio.timeout(30):
            while not any("runs for callers" in message for message in caplog.messages):
                await asyncio.sleep(0.01)
        assert not service.reported
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

        await service.wait_for_benchmarks(1)


async def test_an_artifact_replaced_while_it_is_measured_is_let_go_and_its_successor_measured(
    service: FakeArtifactCache, make_node: NodeMaker
) -> None:
    first, second = digits_artifact(), digits_artifact(name="ort-better")
    await publish(service, first)
    async with make_node().running() as node:
        await node.serves(first.key)
        await publish(service, second)
        await node.serves(second.key)
        async with asyncio.timeout(30):
            while service.reported[-1:] == [] or service.reported[-1][0] != second.key:
                await asyncio.sleep(0.01)

        assert len({key for key, _ in service.reported}) == len(service.reported)


async def test_a_node_on_its_own_measures_nothing(
    service: FakeArtifactCache, make_node: NodeMaker, tmp_path: Path
) -> None:
    artifact = digits_artifact()
    service.measured.add(artifact.key)
    await publish(service, artifact)
    async with make_node().running() as node:
        await node.serves(artifact.key)
    await service.stop()

    alone = make_node()
    assert await alone.updater.start_from_disk()
    async with alone.running():
        await alone.updater.settled()
        assert alone.updater.unmeasured is None
        assert await alone.measurements._round()
        assert (await alone.logits(IMAGES)).shape == (8, 10)
    assert not (tmp_path / "node" / "measurements.json").exists()


class JudgingCache(FakeArtifactCache):
    """Ranks by the real rules and the reported figures, whose median is scripted so that the outcome is known."""

    def __init__(self, fingerprint: Fingerprint, p50_ms: dict[str, float]) -> None:
        super().__init__()
        self._fingerprint = fingerprint
        self._p50_ms = p50_ms
        self._published: list[Manifest] = []
        self._figures: dict[str, list[BenchmarkRecord]] = {}
        self.choices: list[str] = []

    async def add(self, artifact: DigitsArtifact) -> None:
        self.publish(artifact.manifest, artifact.files)
        self._published.append(artifact.manifest)
        await self._judge()

    async def ReportBenchmark(self, request, context):  # type: ignore[no-untyped-def]
        reply = await super().ReportBenchmark(request, context)
        key, record = self.reported[-1]
        scripted = replace(record, p50_ms=self._p50_ms[key], p99_ms=self._p50_ms[key])
        self._figures.setdefault(key, []).append(scripted)
        await self._judge()
        return reply

    async def _judge(self) -> None:
        known = [Candidate(item, self._figures.get(item.artifact_key, ())) for item in self._published]
        offer = negotiate(self._fingerprint, known)
        self.measured = {item.artifact_key for item in offer.ladder if item.measured}
        self.choices.append(offer.ladder[0].artifact_key)
        await self.offer("digits", *(item.artifact_key for item in offer.ladder))


@pytest.mark.parametrize(("hopeful_ms", "settles_on"), [(9.0, "ort-fp32"), (0.1, "ort-hopeful")])
async def test_exploring_ends_each_artifact_is_measured_once_and_the_figures_decide(
    tmp_path: Path,
    fingerprint: Fingerprint,
    caplog: pytest.LogCaptureFixture,
    hopeful_ms: float,
    settles_on: str,
) -> None:
    caplog.set_level("INFO")
    plain = digits_artifact()
    hopes = Contract("onnxruntime", "cpu", "int8", details={"int8_flavour": static_flavour(fingerprint)})
    hopeful = digits_artifact(name="ort-hopeful", contract=hopes)
    dull = digits_artifact(name="ort-dull", contract=Contract("onnxruntime", "cpu", "fp16"))
    by_name = {item.manifest.recipe.name: item.key for item in (plain, hopeful, dull)}
    scripted = {plain.key: 1.0, hopeful.key: hopeful_ms, dull.key: 99.0}
    async with JudgingCache(fingerprint, scripted) as service, grpc.aio.insecure_channel(service.address) as channel:
        async with MeasuringNode(tmp_path, channel, fingerprint).running() as node:
            await service.add(plain)
            await service.wait_for_benchmarks(1)
            await service.add(dull)  # promises nothing, so it is not even tried
            await service.add(hopeful)  # promises more than what was measured, so it is tried
            await service.wait_for_benchmarks(2)
            await node.serves(by_name[settles_on])
            for _ in range(3):  # further offers of the same figures change nothing
                await service._judge()
            async with asyncio.timeout(30):
                while sum("measurement.reported" in message for message in caplog.messages) < 2:
                    await asyncio.sleep(0.01)
        assert await node.measurements._round(), "there is nothing left to do"

    assert [key for key, _ in service.reported] == [plain.key, hopeful.key]
    assert node.served in ([plain.key, hopeful.key, plain.key], [plain.key, hopeful.key])
    assert node.served[-1] == by_name[settles_on]


async def test_a_class_without_build_workers_gets_figures_from_its_node(
    redis_url: str, tmp_path: Path, fingerprint: Fingerprint
) -> None:
    facts = fingerprint.facts
    elsewhere = replace(fingerprint, facts=replace(facts, efficiency_cores=facts.efficiency_cores + 1))
    question = artifacts_pb2.NegotiateRequest(model="digits", fingerprint_json=elsewhere.to_bytes())
    async with compiler_mesh(redis_url, tmp_path / "mesh") as mesh:
        await mesh.push_digits()
        async with worker(mesh, fingerprint):
            await mesh.compile("digits", "ort-fp32")
        before = await mesh.artifacts.Negotiate(question)

        async with MeasuringNode(tmp_path / "node", mesh.channel, elsewhere).running() as node:
            await node.serves(before.choice)
            async with asyncio.timeout(60):
                while (after := await mesh.artifacts.Negotiate(question)).basis != "measured":
                    await asyncio.sleep(0.05)

    assert before.basis == "prior"
    assert b'"reported_by":"node-1"' in after.assessments[0].benchmark_json
    assert (after.choice, after.hardware_class) == (before.choice, hardware_class(elsewhere).key)


@pytest.mark.parametrize("wanted", ["yes", "no"])
async def test_a_whole_node_measures_unless_told_not_to(
    service: FakeArtifactCache, tmp_path: Path, wanted: str
) -> None:
    await publish(service, digits_artifact())
    process = NodeProcess("edge_agent", tmp_path / "agent", service.address, "--node", "board-7")
    async with process.running(DOVETAIL_MEASURE=wanted, DOVETAIL_MODEL_POLL_S="0.2"):
        if wanted == "yes":
            await service.wait_for_benchmarks(1)
        else:
            await process.until_ready()
            service.nodes.clear()
            async with asyncio.timeout(60):
                while len(service.nodes) < 10:  # each tells about a fifth of a second
                    await service.wait_for_lists(1)

    assert [record.reported_by for _, record in service.reported] == (["board-7"] if wanted == "yes" else [])
