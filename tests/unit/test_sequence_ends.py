# SPDX-License-Identifier: Apache-2.0
"""The ends of sequences: idle, withdrawn, late, forgotten or closed, and who gets a slot that is free."""

from __future__ import annotations

import asyncio

import pytest

from dovetail.clock import ManualClock
from dovetail.errors import (
    CancelledError,
    DeadlineError,
    EngineError,
    InvalidInputError,
    UnavailableError,
)
from runtime_svc.configuration.serving_config import SequenceBatching
from tests.fakes.fake_sequence_sessions import (
    CONTROLS,
    STATE,
    SummingStateSession,
    WatchedSession,
    ask,
    hold_busy,
    serve,
    step,
)

DIRECT = SequenceBatching(controls=CONTROLS, max_idle_us=60_000_000)
OLDEST = SequenceBatching(oldest=True, controls=CONTROLS, max_idle_us=60_000_000, max_candidates=4)


async def test_a_sequence_without_a_slot_waits_for_one_with_all_its_requests() -> None:
    session = WatchedSession()
    served = serve(DIRECT, session, max_batch_size=1)
    await served.scheduler.infer(step(1, start=True))
    waiting = ask(
        served, step(2, 20, start=True), step(2, 21), step(3, 30, start=True, end=True), step(2, 22, end=True)
    )
    await served.scheduler.infer(step(1))
    assert not any(task.done() for task in waiting)

    await served.scheduler.infer(step(1, end=True))
    replies = await asyncio.gather(*waiting)
    await served.scheduler.close()

    assert [run["CORRID"].item() for run in session.runs] == [1, 1, 1, 2, 2, 2, 3]
    assert [reply["OUTPUT"].item() for reply in replies] == [20, 21, 30, 22]


async def test_an_idle_sequence_gives_its_slot_to_one_that_waits() -> None:
    served = serve(SequenceBatching(max_idle_us=30_000), WatchedSession(), max_batch_size=1)
    await served.scheduler.infer(step(1, start=True))

    reply = await served.scheduler.infer(step(2, 5, start=True))  # nobody ends the first one
    with pytest.raises(InvalidInputError, match="START flag"):
        await served.scheduler.infer(step(1))
    await served.scheduler.close()

    assert reply["OUTPUT"].item() == 5


async def test_a_sequence_is_over_once_it_was_idle_for_too_long() -> None:
    clock = ManualClock()
    served = serve(SequenceBatching(max_idle_us=1_000_000), WatchedSession(), clock=clock)
    await served.scheduler.infer(step(1, start=True))
    clock.advance(0.9)
    await served.scheduler.infer(step(1))
    clock.advance(0.9)
    await served.scheduler.infer(step(1))
    clock.advance(1.1)

    with pytest.raises(InvalidInputError, match="START flag"):
        await served.scheduler.infer(step(1))
    await served.scheduler.close()


async def test_a_sequence_with_a_request_that_runs_or_waits_is_not_idle() -> None:
    clock = ManualClock()
    session = WatchedSession(hold=True)
    served = serve(SequenceBatching(max_idle_us=1_000_000), session, clock=clock)
    first = await hold_busy(served, session, 1)
    waiting = ask(served, step(2, start=True))
    await asyncio.sleep(0)
    clock.advance(5)

    more = ask(served, step(1), step(2))
    await asyncio.sleep(0)
    session.release(10)
    await asyncio.gather(first, *waiting, *more)
    await served.scheduler.close()


async def test_a_withdrawn_request_ends_its_sequence_and_frees_the_slot() -> None:
    session = WatchedSession(hold=True)
    served = serve(DIRECT, session, max_batch_size=1)
    first = await hold_busy(served, session, 1)
    second, third = ask(served, step(1, 2), step(1, 3))
    (other,) = ask(served, step(2, 9, start=True))
    await asyncio.sleep(0)

    second.cancel()
    with pytest.raises(CancelledError, match="sequence 1 of model 'm' was ended"):
        await third
    session.release(10)
    replies = await asyncio.gather(first, other)
    with pytest.raises(InvalidInputError, match="START flag"):
        await served.scheduler.infer(step(1))
    await served.scheduler.close()

    assert [reply["OUTPUT"].item() for reply in replies] == [1, 9]
    assert [run["CORRID"].item() for run in session.runs] == [1, 2]


async def test_requests_ahead_of_a_withdrawn_one_are_served() -> None:
    session = WatchedSession(hold=True)
    served = serve(DIRECT, session, max_batch_size=1)
    first = await hold_busy(served, session, 1)
    second, third, fourth = ask(served, step(1, 2), step(1, 3), step(1, 4))
    (other,) = ask(served, step(2, 9, start=True))
    await asyncio.sleep(0)

    third.cancel()
    with pytest.raises(CancelledError, match="was ended"):
        await fourth
    session.release(10)
    replies = await asyncio.gather(first, second, other)
    await served.scheduler.close()

    assert [reply["OUTPUT"].item() for reply in replies] == [1, 2, 9]


async def test_a_request_that_runs_already_counts_also_if_its_caller_leaves() -> None:
    session = SummingStateSession(hold=True)
    served = serve(SequenceBatching(states=(STATE,)), session)
    task = await hold_busy(served, session, 1)
    task.cancel()
    await asyncio.sleep(0)
    session.release(2)

    reply = await served.scheduler.infer(step(1, 2))
    await served.scheduler.close()

    assert reply["OUTPUT"].item() == 3


async def test_a_sequence_that_waits_too_long_for_a_slot_is_refused_whole() -> None:
    clock = ManualClock()
    served = serve(DIRECT, WatchedSession(), max_batch_size=1, clock=clock)
    await served.scheduler.infer(step(1, start=True))
    waiting = ask(served, step(2, start=True, timeout_us=1000), step(2))
    await asyncio.sleep(0)
    clock.advance(1)

    await served.scheduler.infer(step(1))  # any event makes it look
    results = await asyncio.gather(*waiting, return_exceptions=True)
    await served.scheduler.close()

    assert [type(result) for result in results] == [UnavailableError] * 2
    assert str(results[0]) == "timeout of the corresponding sequence has been expired"


async def test_a_request_whose_deadline_passed_is_not_run_and_ends_its_sequence() -> None:
    clock = ManualClock()
    session = WatchedSession(hold=True)
    served = serve(DIRECT, session, clock=clock)
    first = await hold_busy(served, session, 1)
    late, after = ask(served, step(1, deadline_s=0.5), step(1))
    await asyncio.sleep(0)
    clock.advance(1)
    session.release(10)

    await first
    results = await asyncio.gather(late, after, return_exceptions=True)
    await served.scheduler.close()

    assert [type(result) for result in results] == [DeadlineError, UnavailableError]
    assert len(session.runs) == 1


async def test_a_full_queue_refuses() -> None:
    session = WatchedSession(hold=True)
    served = serve(DIRECT, session, max_queue_rows=2)
    first = await hold_busy(served, session, 1)
    waiting = ask(served, step(1), step(1))
    await asyncio.sleep(0)

    with pytest.raises(UnavailableError, match="Exceeds maximum queue size"):
        await served.scheduler.infer(step(1))
    session.release(10)
    await asyncio.gather(first, *waiting)
    await served.scheduler.close()


async def test_a_session_that_was_started_again_has_lost_its_sequences() -> None:
    session = WatchedSession()
    served = serve(DIRECT, session)
    await served.scheduler.infer(step(1, start=True))
    await served.scheduler.infer(step(2, start=True))
    session.generation += 1

    with pytest.raises(InvalidInputError, match="START flag"):
        await served.scheduler.infer(step(1))
    await served.scheduler.infer(step(2, start=True))
    await served.scheduler.infer(step(2))
    await served.scheduler.close()


async def test_a_session_that_is_started_again_within_a_run_gives_no_wrong_answer() -> None:
    class Restarting(WatchedSession):
        def compute(self, feeds):
            self.generation += len(self.runs) - 1
            return super().compute(feeds)

    served = serve(DIRECT, Restarting())
    await served.scheduler.infer(step(1, start=True))

    with pytest.raises(EngineError, match="has lost its sequences"):
        await served.scheduler.infer(step(1))
    await served.scheduler.close()


async def test_closing_serves_what_is_queued_and_waits_for_nothing_else() -> None:
    session = WatchedSession(hold=True)
    served = serve(DIRECT, session, max_batch_size=1)
    first = await hold_busy(served, session, 1)
    waiting = ask(served, step(1, 2), step(2, 3, start=True))
    await asyncio.sleep(0)

    closing = asyncio.ensure_future(served.scheduler.close())
    await asyncio.sleep(0)
    session.release(10)
    await asyncio.wait_for(closing, 30)  # long before a minute of idle time

    assert [(await task)["OUTPUT"].item() for task in (first, *waiting)] == [1, 2, 3]
    with pytest.raises(UnavailableError, match="Server is stopping"):
        await served.scheduler.infer(step(5, start=True))
