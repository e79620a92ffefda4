# SPDX-License-Identifier: Apache-2.0
"""Iterative models: turns in batches that change from run to run, readers who are slow or leave, errors, and ends."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from random import Random

import pytest

from dovetail.clock import ManualClock
from dovetail.errors import DeadlineError, EngineError, InvalidInputError, UnavailableError, UnsupportedError
from runtime_svc.configuration.serving_config import SequenceBatching, ServingConfig
from runtime_svc.repository import Repository
from runtime_svc.scheduling.base import SchedulerParts
from runtime_svc.scheduling.iterative.scheduler import start_iterative
from runtime_svc.scheduling.reply_buffer import PLACES
from runtime_svc.scheduling.request import SequenceStep
from runtime_svc.served_model import ModelFacts, ServedModel
from runtime_svc.spare_time import SpareWork
from runtime_svc.statistics import Execution
from tests.fakes.fake_sequence_sessions import WatchedSession, sequence_facts
from tests.fakes.turn_sessions import TurnSession, begun, reading, serve, turns


async def test_a_request_has_as_many_turns_as_the_model_asks_for_and_a_reply_leaves_with_each() -> None:
    session, recorded = TurnSession(), list[Execution]()
    served = serve(session, recorded=recorded)

    got = [await reading(served, turns(count))[0] for count in (1, 3, 50)]
    await served.close()

    assert got == [[0], [0, 1, 2], list(range(50))]
    assert session.known == {}
    assert len(recorded) == 54
    assert [len(execution.queue_ns) for execution in recorded] == [1, 0, 0, 1, *[0] * 49, 1]
    assert session.closed


async def test_newcomers_join_at_the_next_turn_and_whoever_is_done_leaves_without_waiting() -> None:
    session = TurnSession(hold=True)
    served = serve(session, max_batch_size=3)
    first = reading(served, turns(6))
    await begun(session)
    others = reading(served, turns(2), turns(1))
    await asyncio.sleep(0)
    session.release(3)
    short = await asyncio.gather(*others)
    assert not first[0].done()
    session.release(10)

    assert short == [[0, 1], [0]]
    assert await first[0] == list(range(6))
    assert session.rounds == [[6], [2, 1, 6], [2, 6], [6], [6], [6]]
    await served.close()


async def test_a_reply_is_with_its_caller_before_the_next_turn_is_over() -> None:
    session = TurnSession(hold=True)
    served = serve(session)
    replies = served.responses(turns(2))

    session.release(1)
    first = await anext(replies)
    session.release(1)
    rest = [reply["y"].item() async for reply in replies]
    await served.close()

    assert (first["y"].item(), rest) == (0, [1])


async def test_more_candidates_than_a_batch_holds_take_turns() -> None:
    session = TurnSession(hold=True)
    served = serve(session, max_batch_size=2, oldest=True, max_candidates=3)
    tasks = reading(served, turns(3), turns(4), turns(5), turns(1))
    await asyncio.sleep(0)
    session.release(20)
    got = await asyncio.gather(*tasks)
    await served.close()

    assert got == [list(range(count)) for count in (3, 4, 5, 1)]
    rounds = session.rounds[1:] if len(session.rounds[0]) == 1 else session.rounds  # the thread may have been quick
    assert all(len(set(each)) == len(each) <= 2 for each in rounds)
    before = rounds[: next(place for place, each in enumerate(rounds) if 1 in each)]
    assert sum(each.count(3) for each in session.rounds) == 3
    assert any(3 in each for each in before)  # the fourth waited for a seat of the third candidate


async def test_without_batches_each_turn_is_alone() -> None:
    session = TurnSession(hold=True)
    served = serve(session, max_batch_size=0)
    tasks = reading(served, turns(2), turns(3))
    await asyncio.sleep(0)
    session.release(20)
    await asyncio.gather(*tasks)
    await served.close()

    assert session.rounds == [[2], [2], [3], [3], [3]]  # one seat: the second waits for it


async def test_a_slow_reader_holds_up_only_itself_and_no_memory() -> None:
    session = TurnSession()
    served = serve(session)
    slow = served.responses(turns(PLACES + 5))
    first = await anext(slow)
    fast = await reading(served, turns(200))[0]
    had = [turn for _, turn in session.known.values()]
    rest = [reply["y"].item() async for reply in slow]
    await served.close()

    assert fast == list(range(200))
    assert had == [PLACES + 1]  # it has had no turn since its places were full
    assert [first["y"].item(), *rest] == list(range(PLACES + 5))


async def test_who_leaves_has_no_further_turn_and_is_forgotten_also_if_nobody_else_is_there() -> None:
    session = TurnSession(hold=True)
    served = serve(session)
    replies = served.responses(turns(1000))
    session.release(1)
    await anext(replies)
    await begun(session)
    await begun(session)  # the second turn runs

    await replies.aclose()
    session.release(5)
    (after,) = reading(served, turns(1))
    assert await after == [0]
    await served.close()

    assert session.cancelled == [0]
    assert session.known == {}
    assert session.rounds == [[1000], [1000], [1]]


async def test_a_request_that_leaves_while_it_waits_is_never_run() -> None:
    session = TurnSession(hold=True)
    served = serve(session, max_batch_size=1)
    (first,) = reading(served, turns(1))
    await begun(session)
    gone, last = reading(served, turns(7), turns(1))
    await asyncio.sleep(0)
    assert served.pending == 2
    gone.cancel()
    await asyncio.wait([gone])
    session.release(5)
    await asyncio.gather(first, last)
    await served.close()

    assert session.rounds == [[1], [1]]
    assert served.pending == 0


async def test_deadlines_hold_between_turns_and_timeouts_until_the_first() -> None:
    session, clock = TurnSession(hold=True), ManualClock()
    served = serve(session, clock=clock, max_batch_size=2)
    dying, steady = reading(served, turns(100, deadline_s=clock.monotonic_s() + 5), turns(3, timeout_us=1_000_000))
    await begun(session)
    while len(session.rounds) < 2:
        session.release(1)
        await begun(session)
    late = reading(served, turns(1, timeout_us=1_000_000))
    await asyncio.sleep(0)
    clock.advance(6)
    session.release(20)

    with pytest.raises(DeadlineError, match="before model 'm' had replied to the end"):
        await dying
    with pytest.raises(UnavailableError, match="Request timeout expired"):
        await late[0]
    assert await steady == [0, 1, 2]
    await served.close()
    assert session.known == {}


async def test_an_error_of_one_is_its_own_and_an_error_of_a_run_is_everybodys_in_it() -> None:
    session = TurnSession(hold=True)
    served = serve(session)
    first = reading(served, turns(1))
    await begun(session)
    own = reading(served, turns(-2), turns(2))
    await asyncio.sleep(0)
    session.release(3)
    with pytest.raises(EngineError, match="this one"):
        await own[0]
    assert await own[1] == [0, 1]
    blocked = reading(served, turns(1))
    while len(session.rounds) < 4:
        await begun(session)
    all_of_it = reading(served, turns(-1), turns(5))
    await asyncio.sleep(0)
    session.release(5)
    outcomes = await asyncio.gather(*all_of_it, return_exceptions=True)
    assert await asyncio.gather(*first, *blocked) == [[0], [0]]
    await served.close()

    assert [str(outcome) for outcome in outcomes] == ["fake: all of it"] * 2
    assert session.known == {}  # told to forget what it may have kept


async def test_requests_are_spread_over_the_instances_and_stay_where_they_began() -> None:
    left, right = TurnSession(hold=True), TurnSession(hold=True)
    served = serve(left, right)
    tasks = reading(served, turns(3), turns(4))
    await begun(left)
    await begun(right)
    left.release(10)
    right.release(10)

    assert await asyncio.gather(*tasks) == [[0, 1, 2], [0, 1, 2, 3]]
    assert sorted([set(left.rounds[0]).pop(), set(right.rounds[0]).pop()]) == [3, 4]
    assert len(left.rounds) + len(right.rounds) == 7
    await served.close()


async def test_order_can_be_kept_at_the_price_of_waiting() -> None:
    session = TurnSession()
    served = serve(session, oldest=True, max_candidates=4, preserve_ordering=True)
    order: list[str] = []

    async def read(name: str, count: int) -> None:
        async for _ in served.responses(turns(count)):
            order.append(name)

    await asyncio.gather(read("a", 2 * PLACES), read("b", 1), read("c", 2 * PLACES))
    await served.close()

    assert order == ["a"] * 2 * PLACES + ["b"] + ["c"] * 2 * PLACES


async def test_newcomers_wait_for_others_only_while_nobody_is_under_way() -> None:
    session = TurnSession()
    served = serve(session, oldest=True, max_candidates=9, preferred_batch_sizes=(2,), max_queue_delay_us=3_600_000_000)
    first = reading(served, turns(40))
    done, _ = await asyncio.wait(first, timeout=0.05)
    assert not done
    second = reading(served, turns(60))
    await asyncio.gather(*first, *second)

    assert session.rounds[0] == [40, 60]
    assert session.rounds[40:] == [[60]] * 20
    await served.close()


async def test_closing_lets_everyone_finish_and_takes_nobody_else() -> None:
    session = TurnSession(hold=True)
    served = serve(session, max_batch_size=1)
    tasks = reading(served, turns(3), turns(2))
    await begun(session)
    closing = asyncio.ensure_future(served.close())
    await asyncio.sleep(0)
    with pytest.raises(UnavailableError, match="being unloaded"):
        await reading(served, turns(1))[0]
    session.release(10)

    assert await asyncio.gather(*tasks) == [[0, 1, 2], [0, 1]]
    await closing
    assert session.closed


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_comes_and_goes_each_reader_gets_its_own_from_the_first_on(seed: int) -> None:
    random = Random(seed)
    sessions = [TurnSession() for _ in range(1 + seed % 2)]
    served = serve(*sessions, max_batch_size=3, oldest=True, max_candidates=5, preserve_ordering=seed == 3)

    async def read(count: int, most: int) -> bool:
        got: list[int] = []
        async with aclosing(served.responses(turns(count))) as replies:
            async for reply in replies:
                got.append(reply["y"].item())
                for _ in range(random.randrange(3)):
                    await asyncio.sleep(0)
                if len(got) == most:
                    break
        return got == list(range(min(count, most)))

    wanted = [(random.randrange(1, 40), random.choice((1, 5, 100))) for _ in range(150)]
    outcomes = await asyncio.gather(*(read(count, most) for count, most in wanted))
    await served.close()

    assert all(outcomes)
    assert all(session.known == {} for session in sessions)
    assert all(len(each) <= 3 for session in sessions for each in session.rounds)


async def test_bounds_and_what_is_no_request_of_such_a_model() -> None:
    session = TurnSession(hold=True)
    served = serve(session, max_batch_size=1, max_queue_rows=1)
    running = reading(served, turns(1))
    await begun(session)
    waiting = reading(served, turns(1))
    await asyncio.sleep(0)
    for request, error, text in (
        (turns(1), UnavailableError, "Exceeds maximum queue size"),
        (turns(1, rows=2), InvalidInputError, "must specify batch-size 1"),
        (turns(1, sequence=SequenceStep(7, False, False)), InvalidInputError, "must specify the START flag"),
    ):
        with pytest.raises(error, match=text):
            await reading(served, request)[0]
    session.release(5)
    await asyncio.gather(*running, *waiting)
    assert await reading(served, turns(1, sequence=SequenceStep(7, True, False)))[0] == [0]
    await served.close()


async def test_one_reply_is_enough_for_a_model_that_is_not_decoupled() -> None:
    session = TurnSession(last_only=True)
    config = ServingConfig(sequences=SequenceBatching(iterative=True))
    facts = ModelFacts("m", 1, session.inputs, session.outputs, 4, "a" * 64, "fake", "fake")
    repository = Repository()
    repository.install(ServedModel.start(facts, [session], config))

    with repository.lease("m") as model:
        reply = await model.infer(turns(5))
    await repository.close()

    assert reply["y"].item() == 4
    assert len(session.rounds) == 5


async def test_spare_work_is_done_between_turns() -> None:
    session = TurnSession()
    served = serve(session)
    work = SpareWork(lambda given: given is session)

    served.offer_spare(work)

    assert await asyncio.wrap_future(work.future)
    await served.close()
    late = SpareWork(lambda given: None)
    served.offer_spare(late)
    assert late.future.cancelled()


async def test_a_session_that_runs_a_request_once_is_refused() -> None:
    session, config = WatchedSession(), ServingConfig(sequences=SequenceBatching(iterative=True))

    with pytest.raises(UnsupportedError, match="runs a request once"):
        start_iterative(SchedulerParts(sequence_facts(session), (session,), config, print, ManualClock()))
