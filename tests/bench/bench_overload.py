# SPDX-License-Identifier: Apache-2.0
"""What a node does with more requests than it can serve: how many it answers, and how long those take at most.

Requests come at random (a Poisson process, an open loop) at 1.5 and 3 times what the model was just able to serve,
under each of the policies that bound a queue. Each promises an answer at the latest after

    max_queue_size       so many rows at the rate at which they were served, the run that it found, and its own
    a queue's timeout    the timeout, and its own run
    clients' deadlines   the deadline

The 99th percentile of what was answered is held against that, with the mean of all runs as the time of one; how long
runs of the slowest size took stands beside it. Then the shape in which workers that each take everything that waits do
worst: 32 callers in a closed loop on two instances of one thread.

python -m tests.bench overload
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dovetail.probe import measure
from tests.bench.batching_nets import write_minilm
from tests.bench.figures import Figure
from tests.bench.serving.bursts import Caller, EngineFigures, configure, engine_figures
from tests.bench.serving.load import Outcome
from tests.bench.serving.node import Net, artifact_of, request_of, serving

MODEL = "minilm"
FACTORS = (1.5, 3.0)
QUEUE_ROWS = 16
WAIT_S = 0.5
DEADLINE_S = 1.0
SECONDS, WARMUP_S, CAPACITY_S = 6.0, 2.0, 3.0
CALLERS = 32
LAYOUT: Mapping[str, Any] = {
    "instance_group": [{"count": 2}],
    "parameters": {"dovetail.threads": {"string_value": "1"}},
}


@dataclass(frozen=True)
class Policy:
    """What bounds the queue.

    Attributes:
        name: For the table.
        bound_s: Longest time to an answer, of the rate of answers in 1/s and the seconds of a run.
        batching: Of the configuration.
        timeout_s: The clients' deadline.
    """

    name: str
    bound_s: Callable[[float, float], float]
    batching: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float | None = None


POLICIES = (
    Policy(
        f"max_queue_size {QUEUE_ROWS}",
        lambda rate, run_s: QUEUE_ROWS / rate + 2 * run_s,
        {"default_queue_policy": {"max_queue_size": QUEUE_ROWS}},
    ),
    Policy(
        f"timeout {WAIT_S:g} s",
        lambda rate, run_s: WAIT_S + run_s,
        {"default_queue_policy": {"default_timeout_microseconds": int(WAIT_S * 1e6)}},
    ),
    Policy(f"deadline {DEADLINE_S:g} s", lambda rate, run_s: DEADLINE_S, timeout_s=DEADLINE_S),
)


def run() -> list[Figure]:
    """Measure."""
    return asyncio.run(_run())


async def _run() -> list[Figure]:
    machine = await measure()
    with tempfile.TemporaryDirectory(prefix="dovetail-bench-") as name:
        folder = Path(name)
        net = Net(MODEL, "onnxruntime", "fp32", {"model.onnx": write_minilm(folder / "minilm.onnx")})
        artifact = artifact_of(net, machine, [])
        request = folder / "request.bin"
        request.write_bytes(request_of(MODEL, artifact.manifest.inputs).SerializeToString())
        async with serving(folder / "node", [artifact]) as node:
            caller = Caller(node, request)
            await configure(node, MODEL, dict(LAYOUT))
            found = await _closed(caller)
            for policy in POLICIES:
                await configure(node, MODEL, {**LAYOUT, "dynamic_batching": policy.batching})
                for factor in FACTORS:
                    found += await _overloaded(caller, policy, factor)
    return found


async def _overloaded(caller: Caller, policy: Policy, factor: float) -> list[Figure]:
    ready = await caller.closed(QUEUE_ROWS // 2, seconds=CAPACITY_S, warmup_s=1.0)
    capacity = ready.answers / ready.seconds
    before = await engine_figures(caller.node, MODEL)
    outcome = await caller.open(factor * capacity, seconds=SECONDS, warmup_s=WARMUP_S, timeout_s=policy.timeout_s)
    engine = (await engine_figures(caller.node, MODEL)).since(before)
    return _figures(f"{policy.name}, {factor:g} times too much", policy, outcome, capacity, engine)


def _figures(title: str, policy: Policy, outcome: Outcome, capacity: float, engine: EngineFigures) -> list[Figure]:
    rate = outcome.answers / outcome.seconds
    bound_ms = 1e3 * policy.bound_s(rate, engine.run_s)
    how = f"answered {rate:.1f}/s, refused {outcome.failures / outcome.seconds:.1f}/s"
    run_ms, longest_ms = 1e3 * engine.run_s, 1e3 * engine.longest_run_s
    times = (
        f"p50 {outcome.p50_ms:.0f} ms, p99 {outcome.p99_ms:.0f} ms, bound {bound_ms:.0f} ms; run {run_ms:.0f} ms, of"
        f" the slowest size {longest_ms:.0f} ms"
    )
    return [
        Figure(f"{title}: answered, of capacity", rate / capacity, "x", note=f"{how}; capacity {capacity:.1f}/s"),
        Figure(f"{title}: 99th percentile, of its bound", outcome.p99_ms / bound_ms, "x", 1.0, note=times),
    ]


async def _closed(caller: Caller) -> list[Figure]:
    await caller.closed(CALLERS, seconds=CAPACITY_S)  # until the scheduler knows the model
    outcome = await caller.closed(CALLERS, seconds=SECONDS)
    how = f"{CALLERS} callers, 2 x 1 threads; {outcome.answers / outcome.seconds:.1f}/s"
    return [
        Figure("closed loop: median latency", outcome.p50_ms, "ms", note=how),
        Figure("closed loop: 99th percentile", outcome.p99_ms, "ms", note=how),
    ]
