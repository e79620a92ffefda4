# SPDX-License-Identifier: Apache-2.0
"""A real node with real nets for the batching benches: artifacts, their benchmark records, and a process.

The artifacts are offered from memory and signed; all else is the product's own: the node fetches, verifies and proves
them, and chooses instances and threads from the records, which are measured here first.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dovetail.artifact import Manifest
from dovetail.benchmark import BenchmarkRecord
from dovetail.clock import SystemClock
from dovetail.contract import Contract
from dovetail.engines import Session, SessionOptions, create_engine
from dovetail.engines.goldens import Golden, Goldens, write_goldens
from dovetail.engines.measure import record_of
from dovetail.engines.scenarios import Series, callers_of, run_in_turns
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import hardware_class
from dovetail.pb import oip
from dovetail.recipe import Recipe
from dovetail.tensor import NUMPY_DTYPES, Array, TensorSpec, to_raw
from tests.fakes.fake_artifact_cache import FakeArtifactCache
from tests.fakes.node_process import NodeProcess
from tests.fakes.tiny_artifacts import DigitsArtifact, manifest_of
from tests.fixtures_node import publish

MAX_BATCH_SIZE = 32
CHUNK_BYTES = (1 << 20) - 4096
MAX_ID = 1000
Layout = tuple[int, int]
"""Instances and threads of each."""


@dataclass(frozen=True, slots=True)
class Net:
    """What is served.

    Attributes:
        name: Of the model.
        engine: Which runs it.
        precision: Of the recipe and contract.
        files: Name in the artifact -> file.
    """

    name: str
    engine: str
    precision: str
    files: Mapping[str, Path]

    @property
    def contract(self) -> Contract:
        """What it needs: the engine and a CPU."""
        return Contract(self.engine, "cpu", self.precision)

    def load(self, machine: Fingerprint, layout: Layout) -> Session:
        """A session as a node would load it for so many instances and threads."""
        instances, threads = layout
        options = SessionOptions.of_contract(
            self.contract, threads=threads, streams=instances, cpu_features=machine.facts.cpu_features
        )
        return create_engine(self.engine).load(self.files, options)


def layouts_of(cores: int) -> list[Layout]:
    """One instance with all cores, and one for each core."""
    return [(1, cores)] if cores == 1 else [(1, cores), (cores, 1)]


def measure_layouts(net: Net, machine: Fingerprint, cores: int, *, seconds: float) -> list[BenchmarkRecord]:
    """A record of each layout, measured in turns so that a machine that slows down does so for all. Blocks."""
    clock, layouts = SystemClock(), layouts_of(cores)
    sessions = [net.load(machine, layout) for layout in layouts]
    series = [
        Series(callers_of(session, feeds_for(session.inputs), clock, instances), clock, None)
        for session, (instances, _) in zip(sessions, layouts, strict=True)
    ]
    try:
        outcomes = run_in_turns(series, seconds, clock)
    finally:
        for session in sessions:
            session.close()
    key = hardware_class(machine).key
    return [
        record_of(
            outcome, hardware_class=key, batch=1, threads=threads, clock=clock, scenario="offline", streams=instances
        )
        for outcome, (instances, threads) in zip(outcomes, layouts, strict=True)
    ]


def artifact_of(net: Net, machine: Fingerprint, records: Sequence[BenchmarkRecord]) -> DigitsArtifact:
    """The net as an artifact that carries these records, with one golden."""
    session = net.load(machine, (1, 1))
    feeds = feeds_for(session.inputs)[0]
    with tempfile.TemporaryDirectory() as folder:
        goldens = Path(folder) / "goldens.npz"
        write_goldens(goldens, Goldens("fp32", session.inputs, session.outputs, (Golden(feeds, session.run(feeds)),)))
        files = {name: path.read_bytes() for name, path in net.files.items()} | {"goldens.npz": goldens.read_bytes()}
    manifest: Manifest = manifest_of(
        files,
        model=net.name,
        recipe=Recipe(f"{net.engine}-{net.precision}", net.engine, "cpu", net.precision),
        contract=net.contract,
        chunk_bytes=CHUNK_BYTES,
        inputs=session.inputs,
        outputs=session.outputs,
    )
    session.close()
    return DigitsArtifact(replace(manifest, max_batch_size=MAX_BATCH_SIZE, benchmarks=tuple(records)), files)


@asynccontextmanager
async def serving(folder: Path, artifacts: Sequence[DigitsArtifact], **environ: str) -> AsyncIterator[NodeProcess]:
    """A runtime service that serves these, metrics on; it does no measurements of its own meanwhile."""
    names = [artifact.manifest.model for artifact in artifacts]
    async with FakeArtifactCache() as service:
        for artifact in artifacts:
            await publish(service, artifact)
        node = NodeProcess(
            "runtime_svc", folder, service.address, "--models", ",".join(names), "--metrics", "127.0.0.1:0"
        )
        async with node.running(**{"DOVETAIL_MEASURE": "no", **environ}):
            try:
                for name in names:
                    await node.until_ready(name)
            except TimeoutError as exc:
                raise RuntimeError(f"the node does not serve {', '.join(names)}: {node.events()[-2000:]}") from exc
            yield node
            await node.stop()


def layout_of(node: NodeProcess, model: str) -> Layout:
    """What the node chose, as it logged."""
    found = re.findall(rf"artifact\.proven model={re.escape(model)} .*? instances=(\d+) threads=(\d+)", node.events())
    return int(found[-1][0]), int(found[-1][1])


def feeds_for(inputs: Sequence[TensorSpec], count: int = 8) -> list[dict[str, Array]]:
    """Rows of noise; ids are small numbers, masks are ones."""
    random = np.random.default_rng(6)
    feeds = []
    for _ in range(count):
        feed: dict[str, Array] = {}
        for spec in inputs:
            shape, dtype = (1, *spec.shape[1:]), NUMPY_DTYPES[spec.datatype]
            if dtype.kind == "f":
                feed[spec.name] = random.normal(size=shape).astype(dtype)
            elif "mask" in spec.name:
                feed[spec.name] = np.ones(shape, dtype)
            else:
                feed[spec.name] = random.integers(0, MAX_ID, shape).astype(dtype)
        feeds.append(feed)
    return feeds


def request_of(model: str, inputs: Sequence[TensorSpec]) -> oip.ModelInferRequest:
    """A request of one row."""
    feed = feeds_for(inputs, 1)[0]
    request = oip.ModelInferRequest(model_name=model)
    for spec in inputs:
        request.inputs.add(name=spec.name, datatype=spec.datatype, shape=list(feed[spec.name].shape))
        request.raw_input_contents.append(bytes(to_raw(feed[spec.name], spec.datatype)))
    return request
