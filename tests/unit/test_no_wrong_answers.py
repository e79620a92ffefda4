# SPDX-License-Identifier: Apache-2.0
"""No request gets a wrong answer because of batching, padding, splitting, cancelling or reused memory.

Random configurations serve random requests: mixed lengths and sizes, deadlines, timeouts, priorities, callers that go
away, engines that fail for some values or give back views of their inputs, several instances. Every reply is held
until the end of its run and only then compared with what its own input asks for, so memory that was used again too
early shows as well. Whoever gets an error must have asked for one that can happen to them. Where the configuration
keeps the order of requests, their replies have it. `tests/conformance/test_conformance_mixture.py` asks the same over
gRPC, of all that serves.

    DOVETAIL_WRONG_ANSWER_EXAMPLES=20000 pytest -s tests/unit/test_no_wrong_answers.py

looks for longer; the number of requests that were checked is printed.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dovetail.errors import DeadlineError, DovetailError, EngineError, UnavailableError
from dovetail.tensor import Array, TensorSpec
from runtime_svc.configuration.serving_config import Buckets, DynamicBatching, QueuePolicy, ServingConfig, TimeoutAction
from runtime_svc.scheduling.fairness import Gate
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.served_model import ModelFacts, ServedModel

EXAMPLES = int(os.environ.get("DOVETAIL_WRONG_ANSWER_EXAMPLES", "60"))
POISON = -12345.0
"""A request with this value breaks the run that it is in."""

CHECKED: Counter[str] = Counter()


class Engine:
    """`each` is `ids`, as it came or doubled, `sum` adds up what `mask` leaves of it."""

    concurrent = False
    inputs = (TensorSpec("ids", "FP32", (-1, -1)), TensorSpec("mask", "FP32", (-1, -1)))
    outputs = (TensorSpec("each", "FP32", (-1, -1)), TensorSpec("sum", "FP64", (-1,)))

    def __init__(self, *, views: bool, pause_s: float) -> None:
        self.views = views
        self.pause_s = pause_s
        self.busy = False

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        assert not self.busy, "a session was used by two threads at once"
        self.busy = True
        try:
            ids = feeds["ids"]
            if self.pause_s:
                time.sleep(self.pause_s)  # what makes requests queue; nothing waits for it
            if (ids == POISON).any():
                raise EngineError("poisoned")
            each = ids[:] if self.views else ids * 2
            return {"each": each, "sum": (ids * feeds["mask"]).sum(axis=1, dtype=np.float64)}
        finally:
            self.busy = False

    def close(self) -> None:
        """Nothing to free."""


@dataclass(frozen=True)
class Scene:
    """What is served, and how it is asked."""

    config: ServingConfig
    max_batch_size: int
    instances: int
    views: bool
    wide: bool
    pause_s: float
    requests: int
    seed: int


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    limit = draw(st.sampled_from([1, 3, 8, 32]))
    levels = draw(st.sampled_from([0, 0, 2]))
    wide = draw(st.booleans())
    policy = QueuePolicy(
        timeout_action=draw(st.sampled_from(list(TimeoutAction))),
        default_timeout_us=draw(st.sampled_from([0, 0, 2000])),
        max_queue_size=draw(st.sampled_from([0, 0, 20])),
    )
    ordered = draw(st.booleans()) and not levels and policy.timeout_action is TimeoutAction.REJECT
    batching = DynamicBatching(
        preferred_batch_sizes=draw(st.sampled_from([(), (), (limit,)])),
        max_queue_delay_us=draw(st.sampled_from([0, 0, 0, 500])),
        preserve_ordering=ordered,
        priority_levels=levels,
        default_priority_level=1 if levels else 0,
        default_policy=policy,
    )
    sizes = (2048, 4096) if wide else (4, 8)
    config = ServingConfig(
        batching=draw(st.sampled_from([None, batching, batching])),
        allowed_batch_sizes=draw(st.sampled_from([(), (limit,), tuple(sorted({1, (limit + 1) // 2, limit}))])),
        buckets=draw(st.sampled_from([None, Buckets({"ids": 1, "mask": 1}, sizes, {"ids": 9.0}, {"each": 1})])),
        split_oversize=draw(st.booleans()),
        max_queue_rows=draw(st.sampled_from([0, 0, 40])),
    )
    return Scene(
        config,
        limit,
        instances=draw(st.integers(1, 3)),
        views=draw(st.booleans()),
        wide=wide,
        pause_s=draw(st.sampled_from([0.0, 0.0002, 0.001])),
        requests=draw(st.integers(1, 120)),
        seed=draw(st.integers(0, 2**32)),
    )


async def ask(model: ServedModel, scene: Scene, chance: random.Random, number: int, answered: list[int]) -> str:
    """One request; returns what became of it, held until the end of the scene. `answered` says in which order."""
    most = scene.max_batch_size * (3 if scene.config.split_oversize else 1)
    rows = chance.choice([1, 1, 1, chance.randint(1, most)])
    length = chance.choice([3, 4, 4, 6, 8, 9]) * (512 if scene.wide else 1)
    ids = np.full((rows, length), number + 1, np.float32) + np.arange(rows, dtype=np.float32)[:, None] / 128
    poisoned = chance.random() < 0.02
    if poisoned:
        ids[-1, -1] = POISON
    dies, expires = chance.random() < 0.1, chance.random() < 0.1
    request = InferenceRequest(
        {"ids": ids, "mask": np.ones_like(ids)},
        rows=rows,
        deadline_s=time.monotonic() + chance.uniform(0, 0.004) if dies else None,
        timeout_us=chance.randint(1, 4000) if expires else 0,
        priority=chance.randint(0, 3),
    )
    leaves = chance.random() < 0.1
    task = asyncio.ensure_future(model.infer(request))
    if leaves:
        for _ in range(chance.randint(1, 5)):
            await asyncio.sleep(0)
        task.cancel()
    try:
        answer = await task
    except asyncio.CancelledError:
        assert leaves, "nobody cancelled this request"
        return "cancelled"
    except DovetailError as error:
        if not _deserved(error, scene, dies=dies, expires=expires, poisoned=poisoned):
            raise
        return type(error).__name__
    if not leaves:  # which looks for its answer later
        answered.append(number)
    assert not poisoned, "a poisoned request was answered"
    await asyncio.sleep(chance.choice([0, 0.002]))  # others run meanwhile, in what might be the same memory
    expected = ids if scene.views else ids * 2
    assert answer["each"].shape == expected.shape
    assert np.array_equal(answer["each"], expected), f"request {number} got {answer['each']} for {ids}"
    assert np.array_equal(answer["sum"], ids.sum(axis=1, dtype=np.float64))
    return "answered"


def _deserved(error: DovetailError, scene: Scene, *, dies: bool, expires: bool, poisoned: bool) -> bool:
    if isinstance(error, DeadlineError):
        return dies
    if isinstance(error, EngineError):
        return poisoned
    batching = scene.config.batching
    if str(error) == "Request timeout expired":
        return expires or (batching is not None and batching.default_policy.default_timeout_us > 0)
    return isinstance(error, UnavailableError) and str(error) == "Exceeds maximum queue size"


async def play(scene: Scene) -> Counter[str]:
    """Serve the scene's requests, some at once and some in a while; returns what became of them."""
    engines = [Engine(views=scene.views, pause_s=scene.pause_s) for _ in range(scene.instances)]
    facts = ModelFacts("m", 1, Engine.inputs, Engine.outputs, scene.max_batch_size, "a" * 64, "fake", "fake")
    model = ServedModel.start(facts, engines, scene.config, gate=Gate(2))
    chance = random.Random(scene.seed)
    tasks, answered = [], list[int]()
    for number in range(scene.requests):
        tasks.append(asyncio.create_task(ask(model, scene, random.Random(chance.random()), number, answered)))
        if chance.random() < 0.3:
            await asyncio.sleep(chance.choice([0, 0, 0.0005]))
    outcomes = Counter(await asyncio.gather(*tasks))
    figures = model.statistics.snapshot()
    await model.close()
    assert model.pending == 0
    if scene.config.batching is not None and scene.config.batching.preserve_ordering:
        assert answered == sorted(answered)
    assert figures.fail.count == scene.requests - outcomes["answered"]
    assert figures.success.count >= outcomes["answered"]  # more if a caller left in the moment of the answer
    return outcomes


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scene=scenes())
def test_every_reply_is_the_answer_to_its_own_request(scene: Scene) -> None:
    CHECKED.update(asyncio.run(asyncio.wait_for(play(scene), 120)))


def test_the_search_above_looked_at_real_answers() -> None:
    if not CHECKED:
        test_every_reply_is_the_answer_to_its_own_request()
    sys.stderr.write(f"\nrequests checked: {sum(CHECKED.values())}, wrong answers: 0, of them {dict(CHECKED)}\n")

    assert CHECKED["answered"] > 10 * EXAMPLES
    assert CHECKED["cancelled"]


async def test_a_reply_that_is_joined_from_parts_is_not_overtaken_where_order_is_kept() -> None:
    config = ServingConfig(batching=DynamicBatching(preserve_ordering=True), split_oversize=True)
    facts = ModelFacts("m", 1, Engine.inputs, Engine.outputs, 1, "a" * 64, "fake", "fake")
    model = ServedModel.start(facts, [Engine(views=False, pause_s=0.0)], config)
    for _ in range(50):
        answered: list[int] = []

        async def ask_for(rows: int, answered: list[int] = answered) -> None:
            ids = np.ones((rows, 2), np.float32)
            await model.infer(InferenceRequest({"ids": ids, "mask": ids}, rows=rows))
            answered.append(rows)

        await asyncio.gather(ask_for(3), ask_for(1))
        assert answered == [3, 1]
    await model.close()
