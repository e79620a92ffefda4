# SPDX-License-Identifier: Apache-2.0
"""Models that share a node: a light one beside a saturated one, and two that divide the processor by weight.

Two nodes serve the same models, one with the gate between models, one with room for so many engine threads that the
gate never closes; they are asked in turns, so that both see the same machine. What both models do beside each other is
added up as parts of what each does alone.

python -m tests.bench fairness
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from dovetail.probe import measure
from tests.bench.batching_nets import write_minilm, write_resnet50
from tests.bench.figures import Figure
from tests.bench.serving.bursts import Caller, configure, engine_figures
from tests.bench.serving.load import Outcome
from tests.bench.serving.node import Net, artifact_of, request_of, serving
from tests.fakes.node_process import NodeProcess
from tests.fakes.tiny_artifacts import DigitsArtifact

GATES: Mapping[str, str] = {"with the gate": "0", "without it": "1024"}
"""DOVETAIL_ENGINE_THREADS; 0: as many as there are cores."""

HEAVY, LIGHT, OTHER = "resnet50", "light", "minilm"
HEAVY_CALLERS, EACH_CALLERS = 16, 8
ROUNDS = 3
SECONDS = 3.0
WEIGHTS = (1.0, 3.0)
WEIGHTS_SECONDS = 8.0


def run() -> list[Figure]:
    """Measure."""
    return asyncio.run(_run())


async def _run() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="dovetail-bench-") as name:
        folder = Path(name)
        artifacts = await _artifacts(folder)
        async with AsyncExitStack() as stack:
            nodes = {}
            for number, (gate, threads) in enumerate(GATES.items()):
                made = serving(folder / f"node-{number}", artifacts, DOVETAIL_ENGINE_THREADS=threads)
                nodes[gate] = await stack.enter_async_context(made)
            found = await _beside(nodes, folder)
            gated = next(iter(nodes.values()))
            for weight in WEIGHTS:
                found.append(await _weighted(gated, folder, weight))
    return found


async def _artifacts(folder: Path) -> Sequence[DigitsArtifact]:
    machine = await measure()
    files = {
        HEAVY: write_resnet50(folder / "heavy.onnx"),
        LIGHT: write_minilm(folder / "light.onnx", tokens=16, layers=2),
        OTHER: write_minilm(folder / "other.onnx"),
    }
    artifacts = []
    for name, path in files.items():
        artifact = artifact_of(Net(name, "onnxruntime", "fp32", {"model.onnx": path}), machine, [])
        (folder / name).write_bytes(request_of(name, artifact.manifest.inputs).SerializeToString())
        artifacts.append(artifact)
    return artifacts


@dataclass(frozen=True, slots=True)
class _Round:
    """What the two models did: each alone, and beside the other."""

    heavy_alone: Outcome
    light_alone: Outcome
    heavy: Outcome
    light: Outcome

    @property
    def total(self) -> float:
        """Of both, as parts of what each does alone."""
        return _rate(self.heavy) / _rate(self.heavy_alone) + _rate(self.light) / _rate(self.light_alone)


async def _beside(nodes: Mapping[str, NodeProcess], folder: Path) -> list[Figure]:
    rounds: dict[str, list[_Round]] = {gate: [] for gate in nodes}
    for node in nodes.values():
        await Caller(node, folder / HEAVY).closed(HEAVY_CALLERS, seconds=SECONDS)  # until the scheduler knows it
    for _ in range(ROUNDS):
        for gate, node in nodes.items():
            rounds[gate].append(await _one_round(node, folder))
    return [figure for gate, found in rounds.items() for figure in _figures(gate, found)]


async def _one_round(node: NodeProcess, folder: Path) -> _Round:
    heavy, light = Caller(node, folder / HEAVY), Caller(node, folder / LIGHT)
    heavy_alone = await heavy.closed(HEAVY_CALLERS, seconds=SECONDS / 2)
    light_alone = await light.closed(1, seconds=SECONDS / 4)
    both = await asyncio.gather(
        heavy.closed(HEAVY_CALLERS, seconds=SECONDS), light.closed(1, seconds=SECONDS, warmup_s=1.0)
    )
    return _Round(heavy_alone, light_alone, *both)


def _figures(gate: str, rounds: Sequence[_Round]) -> list[Figure]:
    def middle(value: Callable[[_Round], float]) -> float:
        return statistics.median(value(it) for it in rounds)

    heavy = f"heavy {middle(lambda it: _rate(it.heavy)):.1f} of {middle(lambda it: _rate(it.heavy_alone)):.1f}/s"
    light = f"light {middle(lambda it: _rate(it.light)):.0f} of {middle(lambda it: _rate(it.light_alone)):.0f}/s"
    alone = f"alone {middle(lambda it: it.light_alone.p50_ms):.1f} ms"
    title = f"light model beside a saturated one, {gate}"
    return [
        Figure(f"{title}: median latency", middle(lambda it: it.light.p50_ms), "ms", note=alone),
        Figure(f"{title}: 99th percentile", middle(lambda it: it.light.p99_ms), "ms", note=f"{ROUNDS} rounds"),
        Figure(f"{title}: throughput of both", middle(lambda it: it.total), "x", note=f"{heavy}, {light}"),
    ]


async def _weighted(node: NodeProcess, folder: Path, weight: float) -> Figure:
    """Part of the engine time that the heavy model gets beside another saturated one."""
    await configure(node, HEAVY, {"parameters": {"dovetail.weight": {"string_value": f"{weight:g}"}}})
    before = [await engine_figures(node, name) for name in (HEAVY, OTHER)]
    outcomes = await asyncio.gather(
        *(Caller(node, folder / name).closed(EACH_CALLERS, seconds=WEIGHTS_SECONDS) for name in (HEAVY, OTHER))
    )
    after = [await engine_figures(node, name) for name in (HEAVY, OTHER)]
    one, other = (now.since(then).busy_s for now, then in zip(after, before, strict=True))
    rates = " and ".join(f"{_rate(outcome):.1f}/s" for outcome in outcomes)
    return Figure(
        f"engine time of {HEAVY} beside {OTHER}, weights {weight:g} : 1", one / (one + other), "x",
        note=f"{weight / (weight + 1):.2f} by weight; {EACH_CALLERS} callers each, {rates}",
    )  # fmt: skip


def _rate(outcome: Outcome) -> float:
    return outcome.answers / outcome.seconds
