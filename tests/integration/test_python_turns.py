# SPDX-License-Identifier: Apache-2.0
"""Iterative Python models in real processes: turns, state, replies, cancellation, errors, and processes that die."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dovetail.clock import SystemClock
from dovetail.errors import DeadlineError, EngineError, InvalidInputError
from dovetail.tensor import Array, TensorSpec
from runtime_svc.configuration.serving_config import SequenceBatching, ServingConfig
from runtime_svc.model_facts import ModelFacts
from runtime_svc.python_models.session import PythonSession
from runtime_svc.python_models.shared_pages import LEAST_BYTES
from runtime_svc.scheduling.iterative.turns import Turn, TurnResult
from runtime_svc.scheduling.request import InferenceRequest, SequenceStep
from runtime_svc.served_model import ServedModel
from tests.fixtures_python_models import opened, wait_for

CODE = """
import os, time
import numpy as np

class State:
    open = 0
    def __init__(self):
        State.open += 1
    def __del__(self):
        State.open -= 1

class Model:
    def infer(self, requests):
        ops = [request["op"].item().decode() for request in requests]
        if "break" in ops:
            raise ValueError("all of it")
        for request, op in zip(requests, ops):
            if request.turn == 0:
                assert request.state is None
                request.state = State()
            getattr(self, op)(request, len(requests))
        return "something" if "give_back" in ops else None

    def count(self, request, together):
        x = request["x"]
        request.reply({"y": x[:, :1] * 0 + request.turn})
        if request.turn + 1 < x.shape[1]:
            request.again()

    def together(self, request, together):
        request.reply({"y": np.array([[together]], np.float32)})

    def alive(self, request, together):
        request.reply({"y": np.array([[State.open]], np.float32)})

    def identity(self, request, together):
        if request.turn < 2:
            request.again()
        else:
            request.reply({"y": request["x"]})

    def many(self, request, together):
        for number in range(5):
            request.reply({"y": request["x"] + np.float32(number)})

    def none(self, request, together):
        pass

    give_back = none

    def fail_late(self, request, together):
        request.reply({"y": request["x"]})
        if request.turn == 1:
            request.fail("no more")
        else:
            request.again()

    def refuse(self, request, together):
        from dovetail.errors import InvalidInputError
        request.fail(InvalidInputError("too long"))

    def wrong(self, request, together):
        request.reply({"y": request["x"].astype(np.float64)})

    def until_cancelled(self, request, together):
        while not request.cancelled:
            time.sleep(0.001)
        request.again()

    def told(self, request, together):
        s = request.sequence
        left = request.remaining_s
        row = [s.id, s.start, s.end, -1 if left is None else left] if s else [0, 0, 0, -1 if left is None else left]
        request.reply({"y": np.array([row], np.float32)})

    def leave(self, request, together):
        os._exit(3)

    def reply_and_again(self, request, together):
        request.reply({"y": request["x"]})
        request.again()

    def two(self, request, together):
        request.reply({"y": request["x"]})
        request.reply({"y": request["x"]})
"""
INPUTS = (TensorSpec("op", "BYTES", (-1, 1)), TensorSpec("x", "FP32", (-1, -1)))
OUTPUTS = (TensorSpec("y", "FP32", (-1, -1)),)
ITERATIVE = SequenceBatching(iterative=True, oldest=True, max_candidates=8)


def asking(op: str, columns: int = 1, **options: Any) -> InferenceRequest:
    feeds = {"op": np.full((1, 1), op.encode(), dtype=object), "x": np.ones((1, columns), np.float32)}
    return InferenceRequest(feeds, **options)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PythonSession]:
    (made,) = opened(tmp_path_factory.mktemp("turns"), CODE, sequences=ITERATIVE, decoupled=True).sessions
    yield made
    made.close()


_keys = iter(range(1, 1 << 30))


def turn(op: str, columns: int = 1, **options: Any) -> Turn:
    return Turn(next(_keys), asking(op, columns, **options))


def values(result: TurnResult) -> list[float]:
    return [reply["y"].ravel()[0].item() for reply in result.replies]


def open_states(session: PythonSession) -> int:
    (result,) = session.run_turns([turn("alive")], ())
    return int(values(result)[0]) - 1  # without its own


def test_requests_of_any_shape_run_together_and_send_their_inputs_once(session: PythonSession) -> None:
    turns = [turn("count", 3), turn("count", 1), turn("together")]

    first = session.run_turns(turns, ())
    second = session.run_turns([Turn(turns[0].key), turn("together")], ())
    third = session.run_turns([Turn(turns[0].key)], ())

    assert [(values(result), result.again) for result in first] == [([0], True), ([0], False), ([3], False)]
    assert [(values(result), result.again) for result in second] == [([1], True), ([2], False)]
    assert [(values(result), result.again) for result in third] == [([2], False)]


def test_state_lives_as_long_as_its_request(session: PythonSession) -> None:
    going, gone = turn("count", 9), turn("count", 9)
    session.run_turns([going, gone], ())
    assert open_states(session) == 2

    session.run_turns([], [gone.key])
    assert open_states(session) == 1
    session.run_turns([Turn(going.key)], ())
    assert open_states(session) == 1
    session.run_turns([turn("none")], [going.key])
    assert open_states(session) == 0


@pytest.mark.parametrize("columns", [1, LEAST_BYTES // 4, LEAST_BYTES])
def test_inputs_stay_what_they_are_for_all_turns(session: PythonSession, columns: int) -> None:
    one = turn("identity", columns)
    other = asking("identity", columns)
    two = Turn(next(_keys), InferenceRequest({**other.feeds, "x": np.full((1, columns), 7, np.float32)}))

    session.run_turns([one], ())
    session.run_turns([Turn(one.key), two], ())
    (last,) = session.run_turns([Turn(one.key)], ())
    session.run_turns([Turn(two.key)], ())
    (seven,) = session.run_turns([Turn(two.key)], ())

    assert (last.replies[0]["y"] == 1).all()
    assert (seven.replies[0]["y"] == 7).all()
    assert last.replies[0]["y"].shape == seven.replies[0]["y"].shape == (1, columns)


def test_a_turn_may_give_several_replies_or_none(session: PythonSession) -> None:
    many, none = session.run_turns([turn("many"), turn("none")], ())

    assert values(many) == [1, 2, 3, 4, 5]
    assert (values(none), none.again, none.error) == ([], False, None)


def test_an_error_of_one_is_its_own(session: PythonSession) -> None:
    late = turn("fail_late")
    session.run_turns([late], ())

    failed, refused, fine = session.run_turns([Turn(late.key), turn("refuse"), turn("together")], ())

    assert (values(failed), str(failed.error)) == ([1], "Python model 'm': no more")
    assert isinstance(refused.error, InvalidInputError)
    assert values(fine) == [3]
    assert open_states(session) == 0


@pytest.mark.parametrize(
    ("op", "text"),
    [
        ("break", "ValueError: all of it"),
        ("wrong", "has dtype float64"),
        ("give_back", "infer gave a str; a model with iterative_sequence replies with request.reply"),
    ],
)
def test_an_error_of_the_code_ends_all_that_had_a_turn(session: PythonSession, op: str, text: str) -> None:
    known = turn("count", 9)
    session.run_turns([known], ())

    with pytest.raises(EngineError, match=text):
        session.run_turns([Turn(known.key), turn(op)], ())

    assert open_states(session) == 0
    (lost,) = session.run_turns([Turn(known.key)], ())
    assert "its process is gone" in str(lost.error)


def test_a_request_sees_that_its_own_caller_has_left(session: PythonSession) -> None:
    first, second = turn("until_cancelled"), turn("until_cancelled")
    got: list[TurnResult] = []
    runner = threading.Thread(target=lambda: got.extend(session.run_turns([first, second], ())))
    runner.start()
    session.cancel(1)
    runner.join(0.2)
    assert runner.is_alive()  # the other one is there
    while runner.is_alive():  # the run may not have begun yet when it is told first
        session.cancel(0)
        session.cancel(1)
        runner.join(0.01)

    assert [result.again for result in got] == [True, True]
    session.run_turns([], [first.key, second.key])


def test_it_is_told_its_sequence_and_its_deadline(session: PythonSession) -> None:
    deadline_s = SystemClock().monotonic_s() + 50
    step = SequenceStep(7, start=True, end=False)

    told, nothing = session.run_turns([turn("told", sequence=step, deadline_s=deadline_s), turn("told")], ())

    *which, left_s = told.replies[0]["y"].ravel().tolist()
    assert which == [7, 1, 0]
    assert 0 < left_s <= 50
    assert nothing.replies[0]["y"].ravel().tolist() == [0, 0, 0, -1]


@pytest.mark.parametrize(
    ("op", "text"),
    [
        ("reply_and_again", "a reply and a call of again in one turn"),
        ("none", "neither a reply nor a call of again"),
    ],
)
def test_a_model_that_is_not_decoupled_has_one_reply(tmp_path: Path, op: str, text: str) -> None:
    (made,) = opened(tmp_path / "m", CODE, sequences=ITERATIVE).sessions

    bad, good = made.run_turns([turn(op), turn("together")], ())
    with pytest.raises(EngineError, match="a second reply"):
        made.run_turns([turn("two")], ())
    made.close()

    assert text in str(bad.error)
    assert (values(good), bad.replies) == ([2], [])


@asynccontextmanager
async def served(folder: Path, **config: Any) -> AsyncIterator[tuple[ServedModel, PythonSession]]:
    model = opened(folder, CODE, sequences=ITERATIVE, decoupled=True, **config)
    facts = ModelFacts("m", 1, INPUTS, OUTPUTS, 8, "a" * 64, "local", "python")
    made = ServedModel.start(facts, model.sessions, ServingConfig(sequences=ITERATIVE, decoupled=True, **config))
    yield made, model.sessions[0]
    await made.close()


async def collect(model: ServedModel, request: InferenceRequest) -> list[Array]:
    return [reply["y"] async for reply in model.responses(request)]


async def test_many_generations_run_together_and_each_gets_its_own(tmp_path: Path) -> None:
    async with served(tmp_path / "m") as (model, _):
        counts = [1 + number * 7 % 23 for number in range(40)]
        got = await asyncio.gather(*(collect(model, asking("count", count)) for count in counts))
        figures = model.statistics.snapshot()

    assert [[reply.item() for reply in replies] for replies in got] == [list(range(count)) for count in counts]
    assert figures.inference_count == sum(counts)
    assert figures.success.count == 40
    assert figures.execution_count < sum(counts) / 2  # they shared runs


async def test_a_process_that_dies_fails_what_was_under_way_and_the_next_one_takes_what_is_new(tmp_path: Path) -> None:
    async with served(tmp_path / "m") as (model, session):
        paused = model.responses(asking("count", 100))
        await anext(paused)  # it goes on until its places are full
        with pytest.raises(EngineError, match="exit status 3"):
            await collect(model, asking("leave"))
        await asyncio.to_thread(wait_for, lambda: session.ready)
        fresh = await collect(model, asking("count", 2))

        async def rest() -> int:
            return len([reply async for reply in paused])

        with pytest.raises(EngineError, match="its process is gone|exit status 3"):
            await rest()

    assert len(fresh) == 2


async def test_leaving_and_deadlines_free_the_state_between_turns(tmp_path: Path) -> None:
    async with served(tmp_path / "m") as (model, _):
        leaver = model.responses(asking("count", 1_000_000))
        await anext(leaver)
        await leaver.aclose()
        with pytest.raises(DeadlineError):
            await collect(model, asking("count", 1_000_000, deadline_s=SystemClock().monotonic_s() + 0.1))
        ((alive,),) = [await collect(model, asking("alive"))]

    assert alive.item() == 1  # its own
