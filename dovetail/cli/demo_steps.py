# SPDX-License-Identifier: Apache-2.0
"""What the demo does, one function a step, over the SDK and the mesh like any user's program.

Each step prints for the reader and returns what later steps and the JSON report need. A claim that does not hold (a
served accuracy that differs from the artifact's own, a node that does not come back) raises DemoError: the demo is a
test of the whole mesh, and its exit code says so.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dovetail.cli.artifact_table import ArtifactRow, artifact_table, rows_of
from dovetail.cli.build_progress import BuildProgress
from dovetail.cli.demo_assets import HeldOut, digits_folder, held_out, other_machines
from dovetail.cli.fingerprint_view import fingerprint_panel
from dovetail.cli.output import percent_text, short_key, size_text
from dovetail.client import Artifact, AsyncClient, Build, Node, Offer, Serving
from dovetail.client.inference import InferenceNode
from dovetail.engines import SessionOptions, create_engine
from dovetail.errors import DovetailError
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import hardware_class
from dovetail.mesh import Mesh
from dovetail.rules import Verdict
from dovetail.tensor import Array

MODEL = "digits"
IN_FLIGHT = 8
"""Concurrent requests of the inference steps: enough for the batcher to have something to batch."""

NODE_TIMEOUT_S = 60.0


class DemoError(DovetailError):
    """Something that the demo promises did not hold."""


@dataclass(slots=True)
class Stage:
    """What the steps share.

    Attributes:
        console: Where they print.
        client: Connected to the compiler service.
        fingerprint: This machine.
        data: Held-out digits.
        report: Filled in by the steps, for --json.
    """

    console: Console
    client: AsyncClient
    fingerprint: Fingerprint
    data: HeldOut = field(default_factory=held_out)
    report: dict[str, object] = field(default_factory=dict)

    def title(self, number: int, text: str) -> None:
        """Start of a step."""
        self.console.print()
        self.console.rule(Text(f"{number}  {text}", style="bold"), align="left", style="dim")

    def say(self, text: str) -> None:
        """A line of plain text."""
        self.console.print(Text(text))


async def push(stage: Stage) -> None:
    """Push the digits net with calibration samples and labelled validation samples."""
    folder = digits_folder()
    result = await stage.client.push(
        MODEL,
        folder / "digits.onnx",
        calibration=folder / "calibration.npz",
        validation=folder / "validation.npz",
        task="classification",
    )
    model = result.model
    stage.say(
        f"{model.name} version {model.version}: {size_text(model.size_bytes)}, opset {model.opset}, "
        f"{model.calibration_samples} calibration and {model.validation_samples} labelled validation samples, "
        f"digest {short_key(model.model_digest)}"
    )
    for note in result.notes:
        stage.say(f"  intake: {note}")
    stage.report["model"] = {"name": model.name, "version": model.version, "digest": model.model_digest}


def show_machine(stage: Stage) -> None:
    """Show what this machine measured about itself."""
    stage.console.print(fingerprint_panel(stage.fingerprint))
    found = hardware_class(stage.fingerprint)
    stage.report["hardware_class"] = {"key": found.key, "label": found.label, "isa_class": found.isa_class}


async def compile_all(stage: Stage) -> tuple[Build, ...]:
    """Build every recipe that this machine can use, with live progress."""
    events = stage.client.compile(MODEL, fingerprint=stage.fingerprint)
    with BuildProgress(stage.console) as progress:
        async with aclosing(events):
            async for event in events:
                progress.update(event)
    builds = tuple(progress.builds.values())
    if not any(build.phase.value == "ready" for build in builds):
        raise DemoError("no recipe gave an artifact; see the reasons above")
    return builds


async def compare(stage: Stage, builds: Sequence[Build]) -> Mapping[str, Array]:
    """Print the table, and return what each artifact itself predicts for the held-out digits.

    Returns:
        Artifact key -> int64 predictions (n,).
    """
    artifacts = await stage.client.artifacts(MODEL)
    predictions = {}
    with tempfile.TemporaryDirectory(prefix="dovetail-demo-") as scratch:
        for number, artifact in enumerate(artifacts):
            into = Path(scratch, str(number))
            await asyncio.to_thread(into.mkdir)
            files = await stage.client.download(artifact.manifest.artifact_key, into)
            predictions[artifact.manifest.artifact_key] = await asyncio.to_thread(
                _predict, artifact, files, stage.fingerprint, stage.data.image
            )
    accuracy = {key: float(np.mean(found == stage.data.label)) for key, found in predictions.items()}
    offer = await stage.client.negotiate(MODEL, stage.fingerprint)
    rows = rows_of(builds=builds, artifacts=artifacts, offer=offer, accuracy=accuracy)
    stage.console.print(artifact_table(rows))
    stage.say(
        f"accuracy on {len(stage.data.label)} held-out digits (gate's, on validation samples, for what was rejected); "
        "speed-up against the unoptimised fp32 model in the same run, batch 1"
    )
    stage.report["artifacts"] = [_row_json(row) for row in rows]
    return predictions


def _predict(artifact: Artifact, files: Mapping[str, Path], machine: Fingerprint, images: Array) -> Array:
    """Run the artifact here, outside any service, one digit at a time."""
    manifest = artifact.manifest
    options = SessionOptions(
        threads=machine.facts.usable_cores,
        device=manifest.contract.device,
        precision=manifest.contract.precision,
        details=manifest.contract.details,
        cpu_features=machine.facts.cpu_features,
    )
    models = {entry.name: files[entry.name] for entry in manifest.files if entry.role == "model"}
    session = create_engine(manifest.contract.engine).load(models, options)
    try:
        name, output = manifest.inputs[0].name, manifest.outputs[0].name
        return np.array([int(session.run({name: images[i : i + 1]})[output].argmax()) for i in range(len(images))])
    finally:
        session.close()


def _row_json(row: ArtifactRow) -> dict[str, object]:
    return {
        "recipe": row.recipe.name,
        "artifact_key": row.artifact_key,
        "engine": row.recipe.engine,
        "precision": row.recipe.precision,
        "size_bytes": row.size_bytes,
        "accuracy": row.accuracy,
        "gate": row.gate.to_json() if row.gate else None,
        "benchmark": row.benchmark.to_json() if row.benchmark else None,
        "speedup": row.benchmark.speedup if row.benchmark else None,
        "verdict": row.verdict.name if row.verdict is not None else None,
        "rank": row.rank,
        "rejected": row.rejected,
        "reason": row.reason,
    }


async def serve(stage: Stage, predictions: Mapping[str, Array]) -> None:
    """Send the held-out digits to every node, by call and by stream; compare with the artifact's own answers."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("node", "serves", "key", "RPC", "digits", "accuracy", "artifact's own", "same"):
        table.add_column(column, justify="right" if column in ("digits", "accuracy", "artifact's own") else "left")
    rows = []
    for role in ("runtime", "edge"):
        node, serving = await ready_node(stage, role)
        own = predictions[serving.artifact_key]
        for rpc, ask in (("ModelInfer", infer_all), ("ModelStreamInfer", stream_all)):
            answers = await ask(node.address, stage.data.image)
            same = bool(np.array_equal(answers, own))
            served, itself = (float(np.mean(found == stage.data.label)) for found in (answers, own))
            table.add_row(
                node.id, serving.recipe, short_key(serving.artifact_key), rpc, str(len(answers)),
                percent_text(served), percent_text(itself), "yes" if same else "NO",
            )  # fmt: skip
            rows.append({"node": node.id, "recipe": serving.recipe, "rpc": rpc, "accuracy": served, "own": itself})
            if not same:
                raise DemoError(f"{node.id} answers other digits by {rpc} than its artifact gives on its own")
    stage.console.print(table)
    stage.report["served"] = rows


async def ready_node(stage: Stage, role: str) -> tuple[Node, Serving]:
    """The node of that role, once it serves the best artifact for it and reported so.

    Raises:
        DemoError: It does not within a minute; says what it reported last.
    """
    last = "it has not reported itself"
    async with _deadline(lambda: f"the {role} node is not READY: {last}"):
        while True:
            for node in await stage.client.nodes():
                serving = next((item for item in node.serving if item.model == MODEL), None)
                if node.role != role:
                    continue
                last = f"{serving.state} {serving.recipe} {serving.reason}" if serving else "it serves nothing yet"
                if serving and serving.state == "READY" and await _is_choice(stage, node, serving):
                    return node, serving
            await asyncio.sleep(0.2)


async def _is_choice(stage: Stage, node: Node, serving: Serving) -> bool:
    """True if no swap to something better is still to come."""
    machine = node.fingerprint or stage.fingerprint
    return (await stage.client.negotiate(MODEL, machine)).choice == serving.artifact_key


class _deadline:  # noqa: N801 - reads as a statement
    """`async with`: DemoError with a text made at that moment when the time is over."""

    def __init__(self, text: Callable[[], str]) -> None:
        self._text = text
        self._timeout = asyncio.timeout(NODE_TIMEOUT_S)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: object, exc: object, trace: object) -> None:
        try:
            await self._timeout.__aexit__(kind, exc, trace)  # type: ignore[arg-type]
        except TimeoutError:
            raise DemoError(self._text()) from None


async def go_offline(stage: Stage, mesh: Mesh, predictions: Mapping[str, Array]) -> None:
    """Kill the compiler service and Redis, restart the edge agent, and infer there."""
    node, serving = await ready_node(stage, "edge")
    for name in ("compiler", "redis"):
        await mesh.kill(name)
        stage.say(f"killed {name} (SIGKILL)")
    start = time.monotonic()
    await mesh.restart("agent")
    back_s = time.monotonic() - start
    answers = await infer_all(mesh.agent_address, stage.data.image)
    if not np.array_equal(answers, predictions[serving.artifact_key]):
        raise DemoError("the agent answers differently after its restart without a network")
    accuracy = float(np.mean(answers == stage.data.label))
    stage.say(
        f"{node.id} restarted, READY again in {back_s:.1f} s (process start included), and answers "
        f"{len(answers)} digits as before: accuracy {percent_text(accuracy)}"
    )
    stage.report["offline"] = {"ready_s": back_s, "accuracy": accuracy}


async def come_back(stage: Stage, mesh: Mesh) -> None:
    """Start Redis and the compiler service again on the same data."""
    await mesh.restart("redis")
    await mesh.restart("compiler")
    models, artifacts = await stage.client.models(), await stage.client.artifacts(MODEL)
    stage.say(f"Redis and the compiler service are back with {len(models)} model and {len(artifacts)} artifacts")


async def infer_all(address: str, images: Array) -> Array:
    """Predictions by one ModelInfer a digit, some in flight at once."""
    node = InferenceNode(address)
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def one(image: Array) -> int:
        async with gate:
            reply = await node.infer(MODEL, {"image": image}, version="", outputs=(), timeout_s=30.0)
        return int(next(iter(reply.values())).argmax())

    try:
        return np.array(await asyncio.gather(*(one(images[i : i + 1]) for i in range(len(images)))))
    finally:
        await node.close()


async def stream_all(address: str, images: Array) -> Array:
    """Predictions over one ModelStreamInfer."""
    node = InferenceNode(address)
    requests = [{"image": images[i : i + 1]} for i in range(len(images))]
    try:
        replies = node.stream(MODEL, requests, version="", outputs=())
        async with aclosing(replies):
            return np.array([int(next(iter(reply.values())).argmax()) async for reply in replies])
    finally:
        await node.close()


async def other_offers(stage: Stage) -> None:
    """Show what machines that are not here would be offered, and what would have to be built for them."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("machine", "class", "would get now", "verdict", "and order"):
        table.add_column(column, overflow="fold")
    summary = []
    for name, fingerprint in other_machines():
        offer = await stage.client.negotiate(MODEL, fingerprint)
        best = next(iter(offer.ladder), None)
        orders = ", ".join(order.recipe.name for order in offer.better) or "nothing better"
        table.add_row(
            name,
            hardware_class(fingerprint).isa_class,
            best.recipe.name if best else "nothing",
            best.verdict.name if best else Verdict.UNSUPPORTED.name,
            orders,
        )
        summary.append(_offer_json(name, offer))
    stage.console.print(table)
    _say_reasons(stage, summary)
    stage.report["other_machines"] = summary


def _offer_json(name: str, offer: Offer) -> dict[str, object]:
    return {
        "machine": name,
        "hardware_class": offer.hardware_class,
        "choice": next((item.recipe.name for item in offer.ladder), ""),
        "basis": offer.basis,
        "refused": {item.recipe.name: [str(reason) for reason in item.reasons] for item in offer.refused},
        "build_orders": {
            order.recipe.name: [text for text in (order.why, order.needs_worker) if text] for order in offer.better
        },
    }


def _say_reasons(stage: Stage, summary: Sequence[Mapping[str, object]]) -> None:
    """Each distinct reason once, with the recipes and the machines that it concerns."""
    for title, field_name in (("Refused", "refused"), ("Build orders", "build_orders")):
        concerned: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
        for row in summary:
            for recipe, reasons in row[field_name].items():  # type: ignore[attr-defined]
                for reason in reasons:
                    recipes, machines = concerned.setdefault(reason, ({}, {}))
                    recipes[recipe] = None
                    machines[str(row["machine"])] = None
        stage.console.print(Text(f"\n{title}", style="bold"))
        for reason, (recipes, machines) in concerned.items():
            stage.console.print(
                Text(f"  {', '.join(recipes)}", style="cyan"), Text(f"for {', '.join(machines)}", style="dim")
            )
            stage.console.print(Padding(Text(reason), (0, 0, 0, 4)))
