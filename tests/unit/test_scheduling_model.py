# SPDX-License-Identifier: Apache-2.0
"""The scheduler as a whole, with engines that a test holds: who runs when, who leaves first, and who is refused."""

from __future__ import annotations

import asyncio

import pytest

from dovetail.clock import ManualClock
from dovetail.errors import DeadlineError, InvalidInputError, UnavailableError
from dovetail.tensor import TensorSpec
from runtime_svc.configuration.serving_config import (
    Buckets,
    DynamicBatching,
    QueuePolicy,
    ServingConfig,
    TimeoutAction,
)
from runtime_svc.served_model import ModelFacts, ServedModel
from runtime_svc.statistics import Failure, Refusal
from tests.fakes.fake_sessions import KEY, FakeSession, HeldSession
from tests.fakes.held_model import Answer, occupy, occupy_all, queue_up, request_of, rows_of, serving, values_of


def batching(**parts: object) -> ServingConfig:
    return ServingConfig(batching=DynamicBatching(**parts))  # type: ignore[arg-type]


async def test_the_first_level_runs_first_and_levels_may_share_a_batch() -> None:
    session = HeldSession()
    config = batching(priority_levels=2, default_priority_level=2)
    async with serving(session, config=config, max_batch_size=2) as model:
        first = await occupy(model, session)
        requests = [request_of(rows_of(1, value), priority=level) for value, level in ((1, 0), (2, 2), (3, 1))]
        waiting = await queue_up(model, *requests)

        session.release(10)
        await asyncio.gather(first, *waiting)

    assert [run["x"].ravel().tolist() for run in session.runs[1:]] == [[3, 1], [2]]


async def test_timed_out_requests_of_a_delay_policy_are_served_last_instead_of_rejected() -> None:
    session, clock = HeldSession(), ManualClock()
    policy = QueuePolicy(timeout_action=TimeoutAction.DELAY, default_timeout_us=1_000_000)
    async with serving(session, config=batching(default_policy=policy), max_batch_size=1, clock=clock) as model:
        first = await occupy(model, session)
        late = await queue_up(model, request_of(rows_of(1, 1)), request_of(rows_of(1, 2)))
        clock.advance(2.0)
        punctual = await queue_up(model, request_of(rows_of(1, 3)))

        session.release(10)
        answers = await asyncio.gather(first, *late, *punctual)

    assert values_of(answers[1:]) == [1, 2, 3]
    assert [float(run["x"][0, 0]) for run in session.runs[1:]] == [3, 1, 2]


async def test_refusals_are_counted_by_reason_and_failures_by_tritons_words() -> None:
    session, clock = HeldSession(), ManualClock()
    config = batching(default_policy=QueuePolicy(max_queue_size=3))
    async with serving(session, config=config, clock=clock) as model:
        first = await occupy(model, session)
        cancelled, late, dead = await queue_up(
            model,
            request_of(rows_of(1)),
            request_of(rows_of(1), timeout_us=1_000_000),
            request_of(rows_of(1), deadline_s=1.0),
        )
        with pytest.raises(UnavailableError, match="Exceeds maximum queue size"):
            await model.infer(request_of(rows_of(1)))
        cancelled.cancel()
        clock.advance(2.0)
        session.release(10)
        outcomes = await asyncio.gather(first, cancelled, late, dead, return_exceptions=True)
        with pytest.raises(DeadlineError, match="had passed when the request came"):
            await model.infer(request_of(rows_of(1), deadline_s=1.0))
        figures = model.statistics.snapshot()

    assert [type(outcome) for outcome in outcomes[1:]] == [asyncio.CancelledError, UnavailableError, DeadlineError]
    assert figures.refusals == {
        Refusal.QUEUE_FULL: 1, Refusal.CANCELLED: 1, Refusal.TIMEOUT: 1, Refusal.DEADLINE: 2
    }  # fmt: skip
    assert figures.failures == {Failure.REJECTED: 4, Failure.CANCELED: 1}
    assert session.batch_rows == [1]


async def test_an_idle_engine_waits_for_a_preferred_size_only_if_a_delay_is_configured() -> None:
    session = FakeSession()
    config = batching(preferred_batch_sizes=(3,), max_queue_delay_us=3_600_000_000)
    async with serving(session, config=config) as model:
        waiting = await queue_up(model, *(request_of(rows_of(1, value)) for value in (1, 2)))
        done, _ = await asyncio.wait(waiting, timeout=0.05)
        assert not done

        waiting += await queue_up(model, request_of(rows_of(1, 3)))
        answers = await asyncio.gather(*waiting)

    assert values_of(answers) == [1, 2, 3]
    assert session.batch_rows == [3]


async def test_a_delayed_batch_goes_when_its_oldest_request_is_old_enough() -> None:
    session = FakeSession()
    async with serving(session, config=batching(max_queue_delay_us=20_000)) as model:
        answer = await model.infer(request_of(rows_of(1, 1)))

    assert values_of([answer]) == [1]


async def test_who_waits_for_others_is_still_told_in_time_that_it_was_too_long() -> None:
    config = batching(max_queue_delay_us=3_600_000_000)
    async with serving(FakeSession(), config=config) as model:
        with pytest.raises(UnavailableError, match="Request timeout expired"):
            await model.infer(request_of(rows_of(1, 1), timeout_us=20_000))


async def test_closing_ends_the_wait_for_others() -> None:
    async with serving(FakeSession(), config=batching(max_queue_delay_us=3_600_000_000)) as model:
        (waiting,) = await queue_up(model, request_of(rows_of(1, 1)))
        await model.close()
        answer = await waiting

    assert values_of([answer]) == [1]


async def test_replies_leave_in_order_also_if_a_later_one_is_ready_first() -> None:
    slow, fast = HeldSession(), HeldSession()
    async with serving(slow, fast, config=batching(preserve_ordering=True), max_batch_size=1) as model:
        tasks = await occupy_all(model, [slow, fast])
        first = slow if slow.runs[0]["x"].shape[1] == 99 else fast
        second = fast if first is slow else slow
        second.release()
        done, _ = await asyncio.wait(tasks[1:], timeout=0.05)
        assert not done
        order: list[int] = []
        for number, task in enumerate(tasks):
            task.add_done_callback(lambda _, number=number: order.append(number))  # type: ignore[misc]
        first.release()
        await asyncio.gather(*tasks)

    assert order == [0, 1]


async def test_a_request_that_goes_away_does_not_hold_up_the_order() -> None:
    one, two = HeldSession(), HeldSession()
    async with serving(one, two, config=batching(preserve_ordering=True), max_batch_size=1) as model:
        tasks = await occupy_all(model, [one, two])
        gone, last = await queue_up(model, request_of(rows_of(1, 1)), request_of(rows_of(1, 2)))
        gone.cancel()
        one.release(10)
        two.release(10)
        answers = await asyncio.gather(*tasks, last)

    assert values_of(answers[2:]) == [2]


async def test_waiting_requests_are_shared_among_idle_instances() -> None:
    sessions = [HeldSession(), HeldSession()]
    async with serving(*sessions) as model:
        while model.scheduler._queue._idle < 2:  # type: ignore[attr-defined]
            await asyncio.sleep(0)  # the threads are on their way
        tasks = [asyncio.create_task(model.infer(request_of(rows_of(1, value)))) for value in range(6)]
        await asyncio.sleep(0)
        for session in sessions:
            assert await asyncio.to_thread(session.started.wait, 30)
        for session in sessions:  # not before: one alone could do it all while the other thread wakes up
            session.release(10)
        answers = await asyncio.gather(*tasks)

    assert values_of(answers) == [0, 1, 2, 3, 4, 5]
    assert all(session.runs for session in sessions)


async def test_a_hopeless_deadline_is_refused_at_once_and_a_full_queue_says_when_to_come_again() -> None:
    session, clock = HeldSession(), ManualClock()
    session.release(64)
    async with serving(session, config=ServingConfig(max_queue_rows=5), max_batch_size=1, clock=clock) as model:
        for _ in range(40):
            await model.infer(request_of(rows_of(1)))
        while session._permits.acquire(blocking=False):
            pass
        session.started.clear()
        tasks: list[Answer] = [asyncio.create_task(model.infer(request_of(rows_of(1))))]
        await asyncio.to_thread(session.started.wait, 30)
        tasks += await queue_up(model, *(request_of(rows_of(1)) for _ in range(4)))
        with pytest.raises(DeadlineError, match="4 rows wait before it"):
            await model.infer(request_of(rows_of(1), deadline_s=1e-9))
        refusals = model.statistics.snapshot().refusals
        session.release(10)
        await asyncio.gather(*tasks)

    assert refusals == {Refusal.PREDICTED: 1}


def facts(**changes: object) -> ModelFacts:
    spec = TensorSpec("x", "FP32", (-1, -1))
    return ModelFacts("m", 1, (spec,), (TensorSpec("y", "FP32", (-1, -1)),), 8, KEY, "fake", "fake", **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (ServingConfig(max_batch_size=9), "max_batch_size 9 .* takes 8 at most"),
        (batching(preferred_batch_sizes=(16,)), "preferred_batch_size"),
        (ServingConfig(allowed_batch_sizes=(4, 2)), "allowed_batch_sizes"),
        (batching(priority_levels=2), "default_priority_level 0 must lie between 1 and"),
        (batching(preserve_ordering=True, priority_levels=2, default_priority_level=1), "one priority level only"),
        (
            batching(
                preserve_ordering=True,
                default_policy=QueuePolicy(timeout_action=TimeoutAction.DELAY, default_timeout_us=1),
            ),
            "does not go with the timeout action DELAY",
        ),
        (ServingConfig(optional_inputs=frozenset({"z"})), "no input 'z' that could be optional"),
        (ServingConfig(buckets=Buckets({"x": 2}, (4,))), "axis 2 of input 'x'"),
        (ServingConfig(buckets=Buckets({"x": 1}, (4, 4))), "bucket sizes"),
    ],
)
async def test_a_configuration_that_cannot_be_obeyed_is_refused_by_what_is_wrong(
    config: ServingConfig, text: str
) -> None:
    with pytest.raises(InvalidInputError, match=text):
        ServedModel.start(facts(), [FakeSession()], config)
