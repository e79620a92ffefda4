# SPDX-License-Identifier: Apache-2.0
"""Batching: who shares a run, who is dropped, and that everyone gets exactly their own rows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.clock import ManualClock
from dovetail.errors import DeadlineError, DovetailError, EngineError, InvalidInputError, UnavailableError
from dovetail.tensor import Array
from runtime_svc.configuration.serving_config import ServingConfig
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.served_model import ServedModel
from tests.fakes.fake_sessions import (
    BrokenSession,
    DoublingSession,
    FakeSession,
    HeldSession,
    SummingSession,
    facts_for,
)
from tests.fakes.held_model import occupy, queue_up, request_of, rows_of, serving


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 8), st.integers(1, 3)), min_size=1, max_size=40),
    instances=st.integers(1, 3),
    max_batch_size=st.sampled_from([0, 8, 11]),
)
def test_every_reply_has_only_its_own_rows_whatever_shares_a_batch(
    sizes: list[tuple[int, int]], instances: int, max_batch_size: int
) -> None:
    async def run_all() -> list[tuple[Array, Array]]:
        sessions = [DoublingSession() for _ in range(instances)]
        model = ServedModel.start(facts_for(sessions[0], max_batch_size=max_batch_size), sessions)
        inputs = [
            np.arange(rows * width, dtype=np.float32).reshape(rows, width) + 1000 * number
            for number, (rows, width) in enumerate(sizes)
        ]
        outputs = await asyncio.gather(*(model.infer(request_of(values)) for values in inputs))
        await model.close()
        return [(values, output["y"]) for values, output in zip(inputs, outputs, strict=True)]

    wrong = [pair for pair in asyncio.run(run_all()) if not np.array_equal(pair[0] * 2, pair[1])]

    assert wrong == []


async def test_what_queued_while_the_engine_was_busy_becomes_one_full_batch() -> None:
    session = HeldSession()
    async with serving(session) as model:
        first = await occupy(model, session)
        waiting = await queue_up(model, *(request_of(rows_of(3, value)) for value in (1, 2, 3)))

        session.release(10)
        results = await asyncio.gather(first, *waiting)

    assert session.batch_rows == [1, 6, 3]  # 3 + 3 fit into 8, the third does not
    assert [float(result["y"][0, 0]) for result in results[1:]] == [1, 2, 3]


async def test_an_idle_engine_runs_a_request_at_once_and_alone() -> None:
    session = FakeSession()
    async with serving(session) as model:
        for value in (1, 2, 3):
            await model.infer(request_of(rows_of(1, value)))

    assert session.batch_rows == [1, 1, 1]


async def test_requests_of_other_shapes_do_not_share_a_batch_and_are_not_overtaken() -> None:
    session = HeldSession()
    async with serving(session) as model:
        first = await occupy(model, session)
        waiting = await queue_up(model, *(request_of(rows_of(1, 1, width)) for width in (2, 2, 5, 2)))

        session.release(10)
        await asyncio.gather(first, *waiting)

    assert [run["x"].shape for run in session.runs[1:]] == [(2, 2), (1, 5), (1, 2)]


async def test_models_without_batching_run_each_request_alone() -> None:
    session = HeldSession()
    async with serving(session, max_batch_size=0) as model:
        first = await occupy(model, session)
        waiting = await queue_up(model, *(InferenceRequest({"x": rows_of(5, value)}) for value in (1, 2)))

        session.release(10)
        await asyncio.gather(first, *waiting)

    assert session.batch_rows == [1, 5, 5]


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (9, "inference request batch-size must be <= 8 for 'm'"),
        (0, "inference request batch-size must be >= 1 for 'm'"),
    ],
)
async def test_requests_with_too_many_or_no_rows_are_refused_by_name(rows: int, text: str) -> None:
    async with serving(FakeSession()) as model:
        with pytest.raises(InvalidInputError) as caught:
            await model.infer(request_of(rows_of(rows)))

    assert str(caught.value) == text


async def test_a_full_queue_refuses_by_rows_and_the_refused_request_leaves_no_trace() -> None:
    session = HeldSession()
    async with serving(session, config=ServingConfig(max_queue_rows=10)) as model:
        first = await occupy(model, session)
        waiting = await queue_up(model, request_of(rows_of(6)), request_of(rows_of(4)))
        with pytest.raises(UnavailableError, match=r"^Exceeds maximum queue size$"):
            await model.infer(request_of(rows_of(1)))

        session.release(10)
        await asyncio.gather(first, *waiting)
        await model.infer(request_of(rows_of(1)))  # there is room again


async def test_a_cancelled_request_gives_its_place_back_and_is_never_run() -> None:
    session = HeldSession()
    async with serving(session, config=ServingConfig(max_queue_rows=8)) as model:
        first = await occupy(model, session)
        (gone,) = await queue_up(model, request_of(rows_of(8, 1)))
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        waiting = await queue_up(model, request_of(rows_of(8, 2)))

        session.release(10)
        await asyncio.gather(first, *waiting)

    assert [float(run["x"][0, 0]) for run in session.runs[1:]] == [2]


@pytest.mark.parametrize(
    ("limits", "error", "text"),
    [
        ({"deadline_s": 5.0}, DeadlineError, "deadline passed while the request waited for model 'm'"),
        ({"timeout_us": 5_000_000}, UnavailableError, "^Request timeout expired$"),
    ],
)
async def test_a_request_whose_time_is_over_is_dropped_before_it_runs(
    limits: dict[str, Any], error: type[DovetailError], text: str
) -> None:
    session, clock = HeldSession(), ManualClock()
    async with serving(session, clock=clock) as model:
        first = await occupy(model, session)
        late, patient = await queue_up(model, request_of(rows_of(1, 1), **limits), request_of(rows_of(1, 2)))
        clock.advance(5.0)

        session.release(10)
        with pytest.raises(error, match=text):
            await late
        await asyncio.gather(first, patient)

    assert [float(run["x"][0, 0]) for run in session.runs[1:]] == [2]


@pytest.mark.parametrize("make", [BrokenSession, lambda: BrokenSession(RuntimeError("undocumented"))])
async def test_a_request_that_breaks_the_engine_does_not_take_its_batch_along(
    make: Callable[[], BrokenSession],
) -> None:
    session = make()
    async with serving(session) as model:
        first = await occupy(model, session)
        good, bad, other = await queue_up(model, *(request_of(rows_of(1, value)) for value in (1, -1, 2)))

        session.release(10)
        await first
        with pytest.raises(EngineError):
            await bad
        results = [await good, await other]
        after = await model.infer(request_of(rows_of(1, 7)))  # the thread is still there

    assert [float(result["y"][0, 0]) for result in (*results, after)] == [1, 2, 7]


async def test_a_model_whose_outputs_have_no_row_per_request_is_run_request_by_request() -> None:
    session = SummingSession()
    async with serving(session) as model:
        first = await occupy(model, session)
        waiting = await queue_up(model, request_of(rows_of(2, 1)), request_of(rows_of(2, 10)))

        session.release(10)
        await first
        results = await asyncio.gather(*waiting)

    assert [result["y"].tolist() for result in results] == [[[2.0]], [[20.0]]]


async def test_closing_serves_what_is_queued_and_refuses_what_comes_after() -> None:
    session = HeldSession()
    async with serving(session) as model:
        first = await occupy(model, session)
        waiting = await queue_up(model, request_of(rows_of(1, 5)))
        closing = asyncio.create_task(model.close())
        for _ in range(5):  # the task, the future that it shields, and the event that this waits for
            await asyncio.sleep(0)
        with pytest.raises(UnavailableError, match="being unloaded"):
            await asyncio.wait_for(model.infer(request_of(rows_of(1))), 10)

        session.release(10)
        await asyncio.gather(first, *waiting, closing)

        assert session.closed


async def test_a_lease_keeps_a_model_open_until_it_ends() -> None:
    session = FakeSession()
    model = ServedModel.start(facts_for(session), [session])
    with model.lease():
        closing = asyncio.create_task(model.close())
        await asyncio.sleep(0)
        answer = await model.infer(request_of(rows_of(1, 3)))
        assert not session.closed
    await closing

    assert float(answer["y"][0, 0]) == 3
    assert session.closed
