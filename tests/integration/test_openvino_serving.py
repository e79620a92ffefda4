# SPDX-License-Identifier: Apache-2.0
"""OpenVINO on a real node as several instances, which share a session with a stream for each."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np

from dovetail.benchmark import BenchmarkRecord
from dovetail.contract import Contract
from dovetail.engines import SessionOptions, create_engine
from dovetail.engines.goldens import Golden, Goldens, write_goldens
from dovetail.engines.openvino_engine import import_openvino
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import hardware_class
from dovetail.pb import oip
from dovetail.recipe import Recipe
from tests.fakes.fake_artifact_cache import FakeArtifactCache
from tests.fakes.node_process import NodeProcess
from tests.fakes.onnx_models import conv_net, images
from tests.fakes.tiny_artifacts import DigitsArtifact, manifest_of
from tests.fixtures_node import publish

REQUESTS, AT_ONCE = 200, 16


def record(key: str, streams: int, throughput: float) -> BenchmarkRecord:
    return BenchmarkRecord(
        hardware_class=key, batch=1, threads=1, samples=9, windows=3, steady=True, p50_ms=1, p95_ms=1, p99_ms=1,
        throughput=throughput, load_ms=1, scenario="offline", streams=streams,
    )  # fmt: skip


def artifact(folder: Path, machine: Fingerprint) -> tuple[DigitsArtifact, list[np.ndarray]]:  # type: ignore[type-arg]
    """The net as an artifact that is measured to be faster as two instances, and its answers to `images(1, seed)`."""
    library = import_openvino()
    model = library.Core().read_model(conv_net(channels=32).SerializeToString())
    library.save_model(model, str(folder / "m.xml"), compress_to_fp16=False)
    paths = {"model.xml": folder / "m.xml", "model.bin": folder / "m.bin"}
    session = create_engine("openvino").load(paths, SessionOptions(threads=1))
    answers = [session.run({"image": images(1, seed=seed)})["logits"] for seed in range(REQUESTS)]
    golden = Golden({"image": images(1)}, session.run({"image": images(1)}))
    write_goldens(folder / "goldens.npz", Goldens("fp32", session.inputs, session.outputs, (golden,)))
    files = {name: path.read_bytes() for name, path in {**paths, "goldens.npz": folder / "goldens.npz"}.items()}
    manifest = manifest_of(
        files,
        model="net",
        recipe=Recipe("openvino-fp32", "openvino", "cpu", "fp32"),
        contract=Contract("openvino", "cpu", "fp32"),
        inputs=session.inputs,
        outputs=session.outputs,
    )
    session.close()
    key = hardware_class(machine).key
    records = (record(key, 1, 100.0), record(key, 2, 150.0))
    return DigitsArtifact(replace(manifest, benchmarks=records), files), answers


async def test_two_instances_chosen_from_records_give_each_of_many_callers_its_own_answer(
    service: FakeArtifactCache, fingerprint: Fingerprint, tmp_path: Path
) -> None:
    made, expected = await asyncio.to_thread(artifact, tmp_path, fingerprint)
    await publish(service, made)
    node = NodeProcess("runtime_svc", tmp_path / "node", service.address, "--models", "net", "--threads", "2")
    waiting = iter(range(REQUESTS))
    wrong: list[int] = []

    async def caller() -> None:
        for seed in waiting:
            logits = await node.infer(images(1, seed=seed), "net")
            if not np.allclose(logits, expected[seed], rtol=1e-4, atol=1e-5):
                wrong.append(seed)

    async with node.running(DOVETAIL_MEASURE="no"):
        await node.until_ready("net")
        await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
        config = await node.ask("ModelConfig", oip.ModelConfigRequest(name="net"))
        assert await node.stop() == 0

    assert wrong == []
    assert "instances=2 threads=1" in node.events()
    assert isinstance(config, oip.ModelConfigResponse)
    assert [group.count for group in config.config.instance_group] == [2]
