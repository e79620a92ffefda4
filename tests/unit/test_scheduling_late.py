# SPDX-License-Identifier: Apache-2.0
"""Requests whose run would end after their deadline make room for those that can still be answered in time."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest

from dovetail.clock import ManualClock
from dovetail.errors import DeadlineError
from runtime_svc.configuration.serving_config import ServingConfig
from runtime_svc.scheduling.admission import ENOUGH_RUNS, LEAST_PRUDENCE, MOST_PRUDENCE, Prudence, find_late
from runtime_svc.scheduling.base import SchedulerParts
from runtime_svc.scheduling.batch import Batch
from runtime_svc.scheduling.closing import CloseReason
from runtime_svc.scheduling.dispatch import Dispatcher, Turn
from runtime_svc.scheduling.ticket import Ticket
from runtime_svc.statistics import Refusal
from tests.fakes.fake_sessions import FakeSession, facts_for
from tests.fakes.held_model import request_of, rows_of

LAYOUT = (("x", np.dtype(np.float32), (1,)),)
ROW_S = 0.1


@pytest.mark.parametrize(
    ("remaining_s", "expected"),
    [
        ((1.0, 1.0, 1.0, 1.0), (4, [])),
        ((0.3, 0.3, 1.0, 1.0), (4, [0, 1])),  # the batch ends after 0.4 s: two make room
        ((0.3, 0.3, 0.3, 0.3), (2, [])),  # too late for all of four, but not for two
        ((0.01, 0.01, 0.01, 0.01), (1, [0])),
        ((math.inf, 0.01, math.inf, math.inf), (4, [1])),
    ],
)
def test_a_batch_is_halved_if_it_is_too_late_for_all_and_else_those_that_are_late_are_told(
    remaining_s: tuple[float, ...], expected: tuple[int, list[int]]
) -> None:
    assert find_late(remaining_s, (1, 1, 1, 1), lambda rows: ROW_S * rows) == expected


def test_nothing_is_late_while_nothing_is_known() -> None:
    assert find_late((0.01, 0.01), (1, 1), lambda rows: 0.0) == (2, [])


def test_late_answers_make_prudent_and_timely_ones_less_so_but_slowly() -> None:
    prudence = Prudence()

    for _ in range(20):
        prudence.learn(-0.1)
    most = prudence.factor
    for _ in range(10):
        prudence.learn(0.1)
    later = prudence.factor
    for _ in range(1000):
        prudence.learn(0.1)

    assert most == MOST_PRUDENCE
    assert MOST_PRUDENCE / 2 < later < MOST_PRUDENCE
    assert prudence.factor == LEAST_PRUDENCE


class Queue:
    """A dispatcher without engines, of a model that takes ROW_S for each row."""

    def __init__(self, max_batch_size: int = 1) -> None:
        self.clock = ManualClock()
        self.refusals: list[Refusal] = []
        session = FakeSession()
        parts = SchedulerParts(
            facts_for(session, max_batch_size=max_batch_size), (session,), ServingConfig(), lambda execution: None,
            self.clock, self.refusals.append,
        )  # fmt: skip
        self.dispatcher = Dispatcher(parts, 1)

    def learn(self) -> None:
        ticket = self._ticket(None)
        for _ in range(ENOUGH_RUNS + 1):
            self.dispatcher.learn(Batch((ticket,), 1, 1, CloseReason.EMPTY), ROW_S)

    def submit(self, *seconds: float | None) -> list[Ticket]:
        """A request for each, with a deadline in so many seconds."""
        tickets = [self._ticket(None if each is None else self.clock.monotonic_s() + each) for each in seconds]
        for ticket in tickets:
            self.dispatcher.submit((ticket,))
        return tickets

    def take(self) -> tuple[Ticket, ...]:
        batch = self.dispatcher.take(Turn(None, None))
        assert isinstance(batch, Batch)
        return batch.tickets

    def _ticket(self, deadline_s: float | None) -> Ticket:
        request = request_of(rows_of(1), deadline_s=deadline_s)
        return Ticket(request, asyncio.get_running_loop().create_future(), LAYOUT)


async def test_who_would_be_answered_too_late_makes_room_for_who_would_not() -> None:
    queue = Queue()
    queue.learn()
    old = queue.submit(1.0, 1.0)
    queue.clock.advance(0.9)
    young = queue.submit(1.0, None)

    first, second = queue.take(), queue.take()
    for _ in range(2):
        await asyncio.sleep(0)

    assert (first, second) == ((young[0],), (young[1],))
    assert queue.refusals == [Refusal.PREDICTED] * 2
    for ticket in old:
        with pytest.raises(DeadlineError, match="until a run would end after its deadline"):
            await ticket.future


async def test_who_is_late_runs_if_nobody_else_waits_so_that_a_model_that_was_slow_is_measured_again() -> None:
    queue = Queue()
    queue.learn()
    [only] = queue.submit(1.0)
    queue.clock.advance(0.95)

    assert queue.take() == (only,)
    assert queue.refusals == []


async def test_a_run_that_ended_too_late_makes_the_next_ones_be_begun_earlier_or_not_at_all() -> None:
    queue = Queue()
    queue.learn()
    [first] = queue.submit(1.0)
    queue.take()
    queue.clock.advance(1.1)
    for _ in range(3):
        queue.dispatcher.judge(Batch((first,), 1, 1, CloseReason.EMPTY))

    _, young = queue.submit(2 * ROW_S, 1.0)  # the first would be in time if the prediction were right

    assert queue.take() == (young,)


async def test_nobody_is_refused_before_enough_is_known() -> None:
    queue = Queue()
    old, _ = queue.submit(1.0, 5.0)
    queue.clock.advance(0.95)

    assert queue.take() == (old,)
