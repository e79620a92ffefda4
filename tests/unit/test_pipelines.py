# SPDX-License-Identifier: Apache-2.0
"""Pipelines over sessions that a test can hold: order, concurrency, bounds, what goes along, and what is refused."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from dovetail.clock import ManualClock
from dovetail.errors import (
    DeadlineError,
    DovetailError,
    EngineError,
    InvalidInputError,
    UnavailableError,
    UnsupportedError,
)
from dovetail.tensor import Array, TensorSpec
from runtime_svc.configuration.reading import ModelDeclaration
from runtime_svc.configuration.serving_config import Pipeline, PipelineStep, ServingConfig
from runtime_svc.model_facts import ModelFacts
from runtime_svc.pipelines.start import start_pipeline
from runtime_svc.repository import ModelState, Repository
from runtime_svc.scheduling.request import InferenceRequest, SequenceStep
from runtime_svc.served_model import ServedModel
from runtime_svc.statistics import Refusal
from tests.fakes.fake_sessions import BrokenSession, DoublingSession, FakeSession, HeldSession, facts_for

ROW = np.ones((1, 2), np.float32)


class SpyScheduler:
    """Answers with `replies`, and notes what it was asked."""

    pending = 0
    instances = 1

    def __init__(self, replies: Sequence[Mapping[str, Array]] = ({"y": ROW},)) -> None:
        self.replies = replies
        self.asked: list[InferenceRequest] = []
        self.left = asyncio.Event()

    async def infer(self, request: InferenceRequest) -> Mapping[str, Array]:
        self.asked.append(request)
        return self.replies[0]

    async def responses(self, request: InferenceRequest) -> AsyncGenerator[Mapping[str, Array], None]:
        self.asked.append(request)
        try:
            for reply in self.replies:
                yield reply
        finally:
            self.left.set()

    def offer_spare(self, work: Any) -> None:
        work.future.cancel()

    async def close(self) -> None:
        """Nothing to do."""


def step(model: str, x: str = "x", y: str = "y", version: int = 0) -> PipelineStep:
    return PipelineStep(model, version, {"x": x}, {"y": y})


def declared(
    *steps: PipelineStep,
    inputs: Sequence[str] = ("x",),
    outputs: Sequence[str] = ("y",),
    rows: int = 8,
    datatype: str = "FP32",
    max_in_flight: int = 0,
    **serving: Any,
) -> ModelDeclaration:
    def specs(names: Sequence[str]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name, datatype, (-1, -1)) for name in names)

    config = ServingConfig(pipeline=Pipeline(steps, max_in_flight), **serving)
    return ModelDeclaration(max_batch_size=rows, inputs=specs(inputs), outputs=specs(outputs), serving=config)


@pytest.fixture
async def repository() -> AsyncGenerator[Repository, None]:
    made = Repository()
    yield made
    await made.close()


def serve(repository: Repository, name: str, session: FakeSession, **options: Any) -> None:
    repository.install(ServedModel.start(facts_for(session, name, **options), [session]))


def spy(repository: Repository, name: str, scheduler: SpyScheduler, config: ServingConfig | None = None) -> None:
    specs = (TensorSpec("x", "FP32", (-1, -1)),), (TensorSpec("y", "FP32", (-1, -1)),)
    facts = ModelFacts(name, 1, *specs, 8, "b" * 64, "spy", "spy")
    repository.install(ServedModel(facts, scheduler, config))


def start(repository: Repository, declaration: ModelDeclaration, **options: Any) -> ServedModel:
    made = start_pipeline("p", 1, declaration, repository, **options)
    repository.install(made)
    return made


async def ask(repository: Repository, array: Array = ROW, **options: Any) -> Array:
    with repository.lease("p") as model:
        return (await model.infer(InferenceRequest({"x": array}, rows=len(array), **options)))["y"]


async def test_arrays_are_handed_on_and_not_copied(repository: Repository) -> None:
    first, second = SpyScheduler(), SpyScheduler()
    spy(repository, "first", first)
    spy(repository, "second", second)
    start(repository, declared(step("first", y="t"), step("second", x="t")))

    await ask(repository)

    assert first.asked[0].feeds["x"] is ROW
    assert second.asked[0].feeds["x"] is first.replies[0]["y"]


async def test_steps_that_do_not_need_each_other_run_side_by_side(repository: Repository) -> None:
    left, right = HeldSession(), HeldSession()
    serve(repository, "left", left)
    serve(repository, "right", right)
    start(repository, declared(step("left"), step("right", y="z"), outputs=("y", "z")))

    asked = asyncio.create_task(ask(repository))
    both = await asyncio.to_thread(lambda: left.started.wait(30) and right.started.wait(30))
    left.release()
    right.release()

    assert both
    assert (await asked == ROW).all()


async def test_a_step_runs_as_soon_as_its_own_inputs_are_there(repository: Repository) -> None:
    slow, quick = HeldSession(), DoublingSession()
    after = SpyScheduler()
    asked_after = threading.Event()
    after.infer = lambda request: _set(asked_after, {"y": ROW})  # type: ignore[method-assign]
    serve(repository, "slow", slow)
    serve(repository, "quick", quick)
    spy(repository, "after", after)
    steps = step("slow"), step("quick", y="t"), step("after", x="t", y="z")
    start(repository, declared(*steps, outputs=("y", "z")))

    asked = asyncio.create_task(ask(repository))
    ran_early = await asyncio.to_thread(asked_after.wait, 30)
    slow.release()
    await asked

    assert ran_early


async def _set(event: threading.Event, reply: Mapping[str, Array]) -> Mapping[str, Array]:
    event.set()
    return reply


async def test_a_failing_step_ends_those_beside_it_and_says_where(repository: Repository) -> None:
    held, broken = HeldSession(), BrokenSession()
    broken.release()
    serve(repository, "held", held)
    serve(repository, "broken", broken)
    start(repository, declared(step("held"), step("broken", y="z"), outputs=("y", "z")))

    with pytest.raises(EngineError, match="in ensemble 'p', .*index out of range"):
        await ask(repository, -ROW)

    held.release()
    assert repository.resolve("p").statistics.snapshot().fail.count == 1


async def test_an_error_that_others_have_too_is_not_changed_for_them(repository: Repository) -> None:
    error = EngineError("fake: bad")
    broken = BrokenSession(error)
    broken.release()
    serve(repository, "broken", broken)
    start(repository, declared(step("broken")))

    with pytest.raises(EngineError):
        await ask(repository, -ROW)

    assert str(error) == "fake: bad"


async def test_no_more_are_in_flight_than_may_be_and_the_others_wait_in_order(repository: Repository) -> None:
    held = HeldSession()
    serve(repository, "held", held, max_batch_size=1)
    pipeline = start(repository, declared(step("held"), rows=1, max_in_flight=1))

    asked = [asyncio.create_task(ask(repository, ROW * n)) for n in range(4)]
    await asyncio.to_thread(held.started.wait, 30)
    waiting = pipeline.pending
    held.release(4)
    answers = await asyncio.gather(*asked)

    assert waiting == 3
    assert [run["x"][0, 0] for run in held.runs] == [0.0, 1.0, 2.0, 3.0]
    assert [answer[0, 0] for answer in answers] == [0.0, 1.0, 2.0, 3.0]


async def test_a_full_queue_refuses(repository: Repository) -> None:
    held = HeldSession()
    serve(repository, "held", held)
    start(repository, declared(step("held"), max_in_flight=1, max_queue_rows=1))

    asked = [asyncio.create_task(ask(repository)) for _ in range(2)]
    await asyncio.to_thread(held.started.wait, 30)
    with pytest.raises(UnavailableError, match="Exceeds maximum queue size"):
        await ask(repository)
    held.release(2)
    await asyncio.gather(*asked)

    assert repository.resolve("p").statistics.snapshot().refusals == {Refusal.QUEUE_FULL: 1}


async def test_who_waits_for_longer_than_they_want_is_told(repository: Repository) -> None:
    held = HeldSession()
    serve(repository, "held", held)
    start(repository, declared(step("held"), max_in_flight=1))

    first = asyncio.create_task(ask(repository))
    await asyncio.to_thread(held.started.wait, 30)
    with pytest.raises(UnavailableError, match="Request timeout expired"):
        await ask(repository, timeout_us=1000)
    held.release()
    await first


async def test_a_deadline_that_is_over_runs_no_step(repository: Repository) -> None:
    scheduler, clock = SpyScheduler(), ManualClock()
    spy(repository, "m", scheduler)
    start(repository, declared(step("m")), clock=clock)

    with pytest.raises(DeadlineError):
        await ask(repository, deadline_s=clock.monotonic_s() - 1)

    assert scheduler.asked == []


async def test_what_a_request_wants_goes_along_to_every_step(repository: Repository) -> None:
    schedulers = [SpyScheduler(), SpyScheduler()]
    for name, scheduler in zip(("first", "second"), schedulers, strict=True):
        spy(repository, name, scheduler)
    start(repository, declared(step("first", y="t"), step("second", x="t")))
    wants: dict[str, Any] = {
        "deadline_s": 1e12, "timeout_us": 5_000_000, "priority": 3, "sequence": SequenceStep(7, True, False)
    }  # fmt: skip

    await ask(repository, **wants)

    for scheduler in schedulers:
        (request,) = scheduler.asked
        assert {name: getattr(request, name) for name in wants} == wants
        assert request.outputs == {"y"}
        assert request.rows == 1


async def test_cancelling_withdraws_the_step(repository: Repository) -> None:
    held = HeldSession()
    serve(repository, "held", held, max_batch_size=1)
    start(repository, declared(step("held"), rows=1))

    running = asyncio.create_task(ask(repository))
    await asyncio.to_thread(held.started.wait, 30)
    waiting = asyncio.create_task(ask(repository))
    while not repository.resolve("held").pending:
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    held.release(2)
    await running

    assert len(held.runs) == 1


async def test_a_step_can_be_swapped_between_requests(repository: Repository) -> None:
    serve(repository, "m", FakeSession())
    start(repository, declared(step("m")))

    before = await ask(repository)
    serve(repository, "m", DoublingSession())
    after = await ask(repository)

    assert (before[0, 0], after[0, 0]) == (1.0, 2.0)


async def test_no_request_is_lost_or_answered_wrongly_while_steps_are_swapped(repository: Repository) -> None:
    for name in ("first", "second"):
        serve(repository, name, DoublingSession())
    start(repository, declared(step("first", y="t"), step("second", x="t"), max_in_flight=8))

    async def swap() -> None:
        for number in range(20):
            serve(repository, ("first", "second")[number % 2], DoublingSession(), artifact_key=f"{number:064x}")
            await asyncio.sleep(0)

    async def checked(number: int) -> bool:
        rows = 1 + number % 3
        return bool((await ask(repository, np.full((rows, 2), number, np.float32)) == 4 * number).all())

    answers = await asyncio.gather(swap(), *(checked(number) for number in range(300)))

    assert all(answers[1:])
    assert repository.resolve("p").statistics.snapshot().success.count == 300


async def test_a_version_can_be_named(repository: Repository) -> None:
    serve(repository, "m", FakeSession(), version=1)
    serve(repository, "m", DoublingSession(), version=2)
    start(repository, declared(step("m", version=1)))

    assert (await ask(repository))[0, 0] == 1.0


async def test_a_swapped_step_that_takes_something_else_is_found_by_the_request(repository: Repository) -> None:
    serve(repository, "m", FakeSession())
    start(repository, declared(step("m")))

    serve(repository, "m", FakeSession("INT64"))

    with pytest.raises(EngineError, match="tensor 'x' is float32 of shape .*, which input 'x' of model 'm'"):
        await ask(repository)


async def test_a_step_that_gives_another_shape_than_it_said_is_found(repository: Repository) -> None:
    spy(repository, "wrong", SpyScheduler([{"y": np.ones((3,), np.float32)}]))
    serve(repository, "m", FakeSession())
    start(repository, declared(step("wrong", y="t"), step("m", x="t")))

    with pytest.raises(EngineError, match="tensor 't' is float32 of shape"):
        await ask(repository)


async def test_without_a_step_it_is_not_ready_and_says_why(repository: Repository) -> None:
    serve(repository, "m", FakeSession())
    start(repository, declared(step("m")))
    told: list[str] = []
    repository.add_listener(told.append)

    await repository.unload("m")
    entry = next(entry for entry in repository.index() if entry.name == "p")

    assert not repository.serves("p")
    assert (entry.state, entry.reason) == (ModelState.UNAVAILABLE, "its step 'm' does not serve")
    assert "p" in told
    with pytest.raises(UnavailableError, match="'p' version 1 is not at ready state: its step 'm'"):
        await ask(repository)
    serve(repository, "m", FakeSession())
    assert repository.serves("p")


async def test_closing_lets_what_is_in_a_pipeline_end(repository: Repository) -> None:
    held = HeldSession()
    serve(repository, "held", held)
    serve(repository, "a-last", FakeSession())
    start(repository, declared(step("held", y="t"), step("a-last", x="t")))
    asked = asyncio.create_task(ask(repository))
    await asyncio.to_thread(held.started.wait, 30)

    closing = asyncio.create_task(repository.close())
    await asyncio.sleep(0)
    held.release()
    await closing

    assert (await asked == ROW).all()


async def test_a_decoupled_last_step_makes_the_pipeline_decoupled(repository: Repository) -> None:
    serve(repository, "m", DoublingSession())
    scheduler = SpyScheduler([{"y": ROW}, {"y": ROW * 2}, {}])
    spy(repository, "many", scheduler, ServingConfig(decoupled=True))
    pipeline = start(repository, declared(step("m", y="t"), step("many", x="t")))

    replies = [reply async for reply in pipeline.responses(InferenceRequest({"x": ROW}))]

    assert pipeline.decoupled
    assert [sorted(reply) for reply in replies] == [["y"], ["y"], []]
    assert scheduler.asked[0].feeds["x"][0, 0] == 2.0
    with pytest.raises(UnsupportedError, match="decoupled transaction policy"):
        await ask(repository)


async def test_who_leaves_a_decoupled_pipeline_ends_its_step(repository: Repository) -> None:
    scheduler = SpyScheduler([{"y": ROW}] * 3)
    spy(repository, "many", scheduler, ServingConfig(decoupled=True))
    pipeline = start(repository, declared(step("many")))

    replies = pipeline.scheduler.responses(InferenceRequest({"x": ROW}))
    await anext(replies)
    await replies.aclose()  # type: ignore[attr-defined]

    assert scheduler.left.is_set()


async def test_a_decoupled_step_before_the_last_is_refused(repository: Repository) -> None:
    serve(repository, "m", FakeSession())
    spy(repository, "many", SpyScheduler(), ServingConfig(decoupled=True))

    with pytest.raises(InvalidInputError, match="model many gives any number of replies"):
        start(repository, declared(step("many", y="t"), step("m", x="t")))


async def test_an_optional_input_needs_a_step_that_can_do_without(repository: Repository) -> None:
    serve(repository, "m", FakeSession())

    with pytest.raises(InvalidInputError, match="input x in model m is not optional"):
        start(repository, declared(step("m"), optional_inputs=frozenset({"x"})))


async def test_a_pipeline_that_contains_itself_is_refused(repository: Repository) -> None:
    serve(repository, "m", FakeSession())
    start(repository, declared(step("m")))
    outer = start_pipeline("outer", 1, declared(step("p")), repository)
    repository.install(outer)

    with pytest.raises(InvalidInputError, match="contains itself, by way of model 'outer'"):
        start(repository, declared(step("outer")))


@pytest.mark.parametrize("missing", [ServingConfig(), ServingConfig(decoupled=True)])
async def test_a_pipeline_without_a_graph_is_refused(repository: Repository, missing: ServingConfig) -> None:
    with pytest.raises(DovetailError, match="without 'ensemble_scheduling'"):
        start_pipeline("p", 1, ModelDeclaration(serving=missing), repository)
