# SPDX-License-Identifier: Apache-2.0
"""Sequences of a decoupled model: any number of replies to each request, order, state, and readers who leave."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import replace
from typing import cast

import numpy as np
import pytest

from dovetail.clock import Clock, ManualClock, SystemClock
from dovetail.errors import CancelledError, DeadlineError, EngineError, InvalidInputError, UnsupportedError
from dovetail.tensor import Array, TensorSpec
from runtime_svc.configuration.serving_config import SequenceBatching, ServingConfig
from runtime_svc.repository import Repository
from runtime_svc.scheduling.base import SchedulerParts
from runtime_svc.scheduling.reply_buffer import PLACES
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.scheduling.sequences.scheduler import SequenceScheduler, start_sequences
from runtime_svc.served_model import ServedModel
from runtime_svc.statistics import Execution
from tests.fakes.fake_sequence_sessions import CONTROLS, STATE, WatchedSession, begun, sequence_facts, step

DIRECT = SequenceBatching(controls=CONTROLS, max_idle_us=60_000_000)
OLDEST = SequenceBatching(oldest=True, controls=CONTROLS, max_idle_us=60_000_000, max_candidates=4)
STATEFUL = SequenceBatching(states=(STATE,), max_idle_us=60_000_000)


class RepeatingSession(WatchedSession):
    """INPUT replies to each request: 0, 1, …; a negative number means: that many, then fail. Stops when cancelled."""

    decoupled = True

    def __init__(self, *, hold: bool = False) -> None:
        super().__init__(hold=hold)
        self.given = 0
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        self.cancelled.set()
        self.release()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        raise AssertionError("a decoupled session was run as if it had one reply")

    def run_decoupled(self, feeds: Mapping[str, Array], emit: Callable[[Mapping[str, Array]], None]) -> None:
        count = int(super().run(feeds)["OUTPUT"].item())
        for number in range(abs(count)):
            emit(self.reply(feeds, number))
            self.given += 1
        if count < 0:
            raise EngineError("fake: no more")

    def compute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"OUTPUT": feeds["INPUT"]}

    def reply(self, feeds: Mapping[str, Array], number: int) -> dict[str, Array]:
        return {"OUTPUT": np.full((1, 1), number, np.float32)}


class SummingRepeats(RepeatingSession):
    """OUTPUT is the state plus the number of the reply; only the second reply of a request has a new state."""

    inputs = (RepeatingSession.inputs[0], TensorSpec("STATE_IN", "FP32", (-1, 1)))
    outputs = (*RepeatingSession.outputs, TensorSpec("STATE_OUT", "FP32", (-1, 1)))

    def reply(self, feeds: Mapping[str, Array], number: int) -> dict[str, Array]:
        total = feeds["STATE_IN"] + number
        return {"OUTPUT": total, **({"STATE_OUT": total + 10} if number == 1 else {})}


def serve(
    config: SequenceBatching,
    *sessions: WatchedSession,
    clock: Clock | None = None,
    recorded: list[Execution] | None = None,
    **options: object,
) -> SequenceScheduler:
    serving = ServingConfig(sequences=config, decoupled=True, **options)  # type: ignore[arg-type]
    record = recorded.append if recorded is not None else lambda execution: None
    facts = sequence_facts(sessions[0]).served_as(serving)
    return start_sequences(SchedulerParts(facts, sessions, serving, record, clock or SystemClock()))


async def numbers(served: SequenceScheduler, request: InferenceRequest) -> list[float]:
    return [reply["OUTPUT"].item() async for reply in served.responses(request)]


def reading(served: SequenceScheduler, *requests: InferenceRequest) -> list[asyncio.Task[list[float]]]:
    return [asyncio.ensure_future(numbers(served, request)) for request in requests]


@pytest.mark.parametrize("config", [DIRECT, OLDEST], ids=["direct", "oldest"])
async def test_each_request_of_a_sequence_has_any_number_of_replies_and_runs_after_the_one_before(
    config: SequenceBatching,
) -> None:
    session, recorded = RepeatingSession(), []
    served = serve(config, session, recorded=recorded)

    got = await asyncio.gather(
        *reading(served, step(7, 3, start=True), step(7, 0), step(8, 2, start=True, end=True), step(7, 1, end=True))
    )
    await served.close()

    assert got == [[0, 1, 2], [], [0, 1], [0]]
    of_seven = [run for run in session.runs if run["CORRID"].item() == 7]
    assert [run["INPUT"].item() for run in of_seven] == [3, 0, 1]
    assert [(run["START"].item(), run["END"].item()) for run in of_seven] == [(1, -1), (0, -1), (0, 2)]
    assert {run["INPUT"].shape for run in session.runs} == {(1, 1)}
    assert [execution.rows for execution in recorded] == [1, 1, 1, 1]


async def test_the_next_request_starts_only_when_the_last_reply_of_the_one_before_is_out() -> None:
    session = RepeatingSession()
    served, beside = serve(DIRECT, session), serve(DIRECT, RepeatingSession())
    first = served.responses(step(1, PLACES + 3, start=True))
    await anext(first)
    (second,) = reading(served, step(1, 1))
    await begun(session)
    await numbers(beside, step(1, 1, start=True))  # time for a wrong start

    assert len(session.runs) == 1  # it waits for its reader
    assert [reply["OUTPUT"].item() async for reply in first] == list(range(1, PLACES + 3))
    assert await second == [0]
    await served.close()
    await beside.close()


async def test_the_next_request_waits_until_the_replies_are_taken_and_others_only_if_the_order_is_preserved() -> None:
    for preserve in (False, True):
        session = RepeatingSession()
        served = serve(replace(OLDEST, preserve_ordering=preserve), session)
        first = served.responses(step(1, 3, start=True))
        await anext(first)
        behind, beside = reading(served, step(1, 1), step(2, 1, start=True))
        while session.given < 3 or not (preserve or beside.done()):
            await asyncio.sleep(0)
        await asyncio.wait([behind], timeout=0.02)

        runs = [run["CORRID"].item() for run in session.runs]
        assert runs == ([1] if preserve else [1, 2])
        assert [reply["OUTPUT"].item() async for reply in first] == [1, 2]
        assert await asyncio.gather(behind, beside) == [[0], [0]]
        await served.close()


async def test_state_goes_from_the_last_reply_that_has_it_to_the_next_request() -> None:
    served = serve(STATEFUL, SummingRepeats())

    got = [await numbers(served, step(1, count, start=not turn)) for turn, count in enumerate((2, 1, 3))]
    reply = await anext(served.responses(step(1, 1)))
    await served.close()

    assert got == [[0, 1], [11], [11, 12, 13]]
    assert (reply["OUTPUT"].item(), list(reply)) == (22, ["OUTPUT"])


async def test_an_error_comes_after_the_replies_and_the_sequence_goes_on() -> None:
    served = serve(DIRECT, RepeatingSession())
    got: list[float] = []

    async def read() -> None:
        async for reply in served.responses(step(1, -2, start=True)):
            got.append(reply["OUTPUT"].item())

    with pytest.raises(EngineError, match="no more"):
        await read()
    assert got == [0, 1]
    assert await numbers(served, step(1, 1)) == [0]
    await served.close()


async def test_who_leaves_stops_the_model_and_ends_the_sequence() -> None:
    session = RepeatingSession()
    served = serve(DIRECT, session)
    replies = cast("AsyncGenerator[Mapping[str, Array], None]", served.responses(step(1, 1000, start=True)))
    await anext(replies)
    (waiting,) = reading(served, step(1, 1))
    await asyncio.sleep(0)

    await replies.aclose()
    with pytest.raises(CancelledError, match="one of its requests was cancelled"):
        await waiting
    with pytest.raises(InvalidInputError, match="START flag"):
        await numbers(served, step(1, 1))
    other = await numbers(served, step(2, 2, start=True))
    await served.close()

    assert other == [0, 1]
    assert session.cancelled.is_set()
    assert session.given < 1000
    assert len(session.runs) == 2


async def test_who_leaves_while_it_waits_is_never_run() -> None:
    session = RepeatingSession(hold=True)
    served = serve(DIRECT, session)
    (first,) = reading(served, step(1, 1, start=True))
    await begun(session)
    gone, behind = reading(served, step(1, 1), step(1, 1))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone, behind])
    session.release(5)
    got = await first
    await served.close()

    assert got == [0]
    assert isinstance(behind.exception(), CancelledError)
    assert len(session.runs) == 1


async def test_a_deadline_that_passes_in_the_queue_is_told() -> None:
    session, clock = RepeatingSession(hold=True), ManualClock()
    served = serve(DIRECT, session, clock=clock)
    (first,) = reading(served, step(1, 1, start=True))
    await begun(session)
    (late,) = reading(served, step(1, 1, deadline_s=clock.monotonic_s() + 1))
    await asyncio.sleep(0)
    clock.advance(2)
    session.release(5)
    await first

    with pytest.raises(DeadlineError):
        await late
    await served.close()


async def test_a_process_that_was_started_again_has_lost_the_sequence_but_not_a_new_one() -> None:
    session = RepeatingSession()
    served = serve(DIRECT, session)
    await numbers(served, step(1, 1, start=True))
    session.generation += 1

    with pytest.raises(InvalidInputError, match="START flag"):
        await numbers(served, step(1, 1))
    assert await numbers(served, step(1, 2, start=True)) == [0, 1]
    await served.close()


async def test_an_open_sequence_stays_on_the_artifact_that_it_began_on() -> None:
    repository, old, new = Repository(), RepeatingSession(), RepeatingSession()
    config = ServingConfig(sequences=DIRECT, decoupled=True)

    def install(session: RepeatingSession, key: str) -> None:
        repository.install(ServedModel.start(sequence_facts(session, artifact_key=key * 64), [session], config))

    async def ask(request: InferenceRequest) -> int:
        with repository.lease("m") as model:
            return len([reply async for reply in model.responses(request)])

    install(old, "a")
    await ask(step(1, 1, start=True))
    install(new, "b")
    got = [await ask(request) for request in (step(1, 2), step(2, 3, start=True), step(1, 4, end=True))]
    await repository.close()

    assert got == [2, 3, 4]
    assert (len(old.runs), len(new.runs)) == (3, 1)


async def test_one_reply_where_one_is_needed_and_no_other_number() -> None:
    served = serve(DIRECT, RepeatingSession())

    assert (await served.infer(step(1, 1, start=True)))["OUTPUT"].item() == 0
    for count in (0, 2):
        with pytest.raises(UnsupportedError, match="where one is needed"):
            await served.infer(step(2, count, start=True))
    await served.close()
