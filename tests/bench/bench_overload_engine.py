# SPDX-License-Identifier: Apache-2.0
"""The queue's promises under overload, with an engine whose time is known: it sleeps for so long for each row.

As `bench_overload`, without gRPC and without a processor that others take a part of, so that what is not kept is the
queue's fault. Callers go away at their deadline, as gRPC's do.

python -m tests.bench overload_engine
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from dovetail.errors import DovetailError
from dovetail.tensor import Array, TensorSpec
from runtime_svc.configuration.serving_config import DynamicBatching, QueuePolicy, ServingConfig
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.served_model import ModelFacts, ServedModel
from tests.bench.figures import Figure, percentile

ROW_S = 0.04
INSTANCES = 2
CAPACITY = INSTANCES / ROW_S
QUEUE_ROWS, WAIT_S, DEADLINE_S = 16, 0.5, 1.0
FACTORS = (1.5, 3.0)
SECONDS, WARMUP_S = 5.0, 2.0
RUN_S = 2 * ROW_S
"""Of the batches that the scheduler makes of such an engine: they gain nothing, so they are small."""


class _Sleeping:
    """An engine that takes its time and gives its input back."""

    concurrent = True
    inputs = (TensorSpec("x", "FP32", (-1, 1)),)
    outputs = (TensorSpec("y", "FP32", (-1, 1)),)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        time.sleep(ROW_S * len(feeds["x"]))
        return {"y": feeds["x"]}

    def close(self) -> None:
        """Nothing to free."""


@dataclass(frozen=True)
class Policy:
    """What bounds the queue, and the longest time to an answer that it promises."""

    name: str
    bound_s: float
    queue: QueuePolicy = field(default_factory=QueuePolicy)
    timeout_s: float | None = None


POLICIES = (
    Policy(f"max_queue_size {QUEUE_ROWS}", QUEUE_ROWS / CAPACITY + 2 * RUN_S, QueuePolicy(max_queue_size=QUEUE_ROWS)),
    Policy(f"timeout {WAIT_S:g} s", WAIT_S + RUN_S, QueuePolicy(default_timeout_us=int(WAIT_S * 1e6))),
    Policy(f"deadline {DEADLINE_S:g} s", DEADLINE_S, timeout_s=DEADLINE_S),
)


@dataclass
class _Counts:
    """Of what ended while it counts."""

    counting: bool = False
    refused: int = 0
    late: int = 0
    answered_s: list[float] = field(default_factory=list)


def run() -> list[Figure]:
    """Measure."""
    return asyncio.run(_run())


async def _run() -> list[Figure]:
    return [figure for policy in POLICIES for factor in FACTORS for figure in await _overloaded(policy, factor)]


async def _overloaded(policy: Policy, factor: float) -> list[Figure]:
    session = _Sleeping()
    facts = ModelFacts("net", 1, session.inputs, session.outputs, 32, "0" * 64, "bench", "sleeping")
    config = ServingConfig(batching=DynamicBatching(default_policy=policy.queue))
    model = ServedModel.start(facts, [session] * INSTANCES, config)
    counts = await _arrivals(model, policy, factor * CAPACITY)
    await model.close()
    title = f"engine of {ROW_S * 1e3:.0f} ms a row, {policy.name}, {factor:g} times too much"
    rate = len(counts.answered_s) / SECONDS
    p50_s, p99_s = (percentile(counts.answered_s, q) for q in (50, 99))
    how = f"answered {rate:.1f}/s, refused {counts.refused / SECONDS:.1f}/s, too late {counts.late / SECONDS:.1f}/s"
    times = f"p50 {p50_s * 1e3:.0f} ms, p99 {p99_s * 1e3:.0f} ms, bound {policy.bound_s * 1e3:.0f} ms"
    return [
        Figure(f"{title}: answered, of capacity", rate / CAPACITY, "x", 0.9, False, how),
        Figure(f"{title}: 99th percentile, of its bound", p99_s / policy.bound_s, "x", 1.0, note=times),
    ]


async def _arrivals(model: ServedModel, policy: Policy, rate_per_s: float) -> _Counts:
    """Requests that come at random; what ends in the last SECONDS counts."""
    loop, arrivals, counts = asyncio.get_running_loop(), random.Random(1), _Counts()
    due = began = loop.time()
    async with asyncio.TaskGroup() as tasks:
        while due < began + WARMUP_S + SECONDS:
            await asyncio.sleep(max(0.0, due - loop.time()))
            counts.counting = due > began + WARMUP_S
            tasks.create_task(_ask(model, policy.timeout_s, counts))
            due += arrivals.expovariate(rate_per_s)
        counts.counting = False
    return counts


async def _ask(model: ServedModel, timeout_s: float | None, counts: _Counts) -> None:
    started = time.monotonic()
    deadline_s = None if timeout_s is None else started + timeout_s
    request = InferenceRequest({"x": np.zeros((1, 1), np.float32)}, deadline_s=deadline_s)
    try:
        async with asyncio.timeout(timeout_s):
            await model.infer(request)
    except TimeoutError:
        counts.late += counts.counting
    except DovetailError:
        counts.refused += counts.counting
    else:
        if counts.counting:
            counts.answered_s.append(time.monotonic() - started)
