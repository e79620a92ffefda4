# SPDX-License-Identifier: Apache-2.0
"""Second half of the demo: nodes serve while builds go on, answer like their artifact, and outlive the network."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager

import numpy as np
from rich.table import Table

from dovetail.cli.demo.stage import MODEL, DemoError, Stage
from dovetail.cli.output import percent_text, short_key
from dovetail.client import Node, Serving
from dovetail.client.inference import InferenceNode
from dovetail.mesh import Mesh
from dovetail.tensor import Array

IN_FLIGHT = 8
"""Concurrent requests of the inference steps: enough for the batcher to have something to batch."""

NODE_TIMEOUT_S = 60.0
_POLL_S = 0.2


@asynccontextmanager
async def swaps_recorded(stage: Stage) -> AsyncIterator[None]:
    """While the block runs, watch which artifact each node serves; afterwards say how it got better."""
    start = time.monotonic()
    seen: dict[str, list[tuple[str, float]]] = {}
    watching = asyncio.create_task(_watch_swaps(stage, seen, start))
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    for node, steps in sorted(seen.items()):
        stage.say(f"{node} served " + ", then ".join(f"{recipe} after {seconds:.0f} s" for recipe, seconds in steps))
    stage.report["swaps"] = {node: [recipe for recipe, _ in steps] for node, steps in seen.items()}


async def _watch_swaps(stage: Stage, seen: dict[str, list[tuple[str, float]]], start: float) -> None:
    while True:
        for node in await stage.client.nodes():
            for serving in node.serving:
                steps = seen.setdefault(node.id, [])
                if serving.state == "READY" and (not steps or steps[-1][0] != serving.recipe):
                    steps.append((serving.recipe, time.monotonic() - start))
        await asyncio.sleep(_POLL_S)


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
            await asyncio.sleep(_POLL_S)


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
