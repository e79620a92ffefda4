# SPDX-License-Identifier: Apache-2.0
"""A request's way through a pipeline, over sessions that a test holds: order, concurrency, what goes along."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import pytest

from dovetail.clock import ManualClock
from dovetail.errors import DeadlineError, EngineError, UnavailableError, UnsupportedError
from dovetail.tensor import Array
from runtime_svc.configuration.serving_config import ServingConfig
from runtime_svc.repository import Repository
from runtime_svc.scheduling.request import InferenceRequest, SequenceStep
from runtime_svc.statistics import Refusal
from tests.fakes.fake_sessions import BrokenSession, DoublingSession, HeldSession
from tests.fakes.pipeline_steps import ROW, SpyScheduler, ask, declared, serve, spy, start, step


@pytest.fixture
async def repository() -> AsyncGenerator[Repository, None]:
    made = Repository()
    yield made
    await made.close()


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
