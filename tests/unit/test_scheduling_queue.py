# SPDX-License-Identifier: Apache-2.0
"""The queue by itself: order, bounds that cannot drift, and who has to go when."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.errors import BusyError, DeadlineError, UnavailableError
from runtime_svc.configuration.serving_config import DynamicBatching, QueuePolicy, TimeoutAction
from runtime_svc.scheduling.policy import Levels
from runtime_svc.scheduling.queue import RequestQueue
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.scheduling.ticket import Ticket

VALUES = np.zeros((1, 1), np.float32)
LATE = QueuePolicy(timeout_action=TimeoutAction.DELAY)


def ticket(
    level: int = 0,
    *,
    rows: int = 1,
    size_bytes: int = 4,
    deadline_s: float | None = None,
    expires_s: float | None = None,
) -> Ticket:
    request = InferenceRequest({"x": VALUES}, rows=rows, deadline_s=deadline_s)
    loop = asyncio.new_event_loop()
    loop.close()
    future = loop.create_future()
    return Ticket(request, future, (), level=level, size_bytes=size_bytes, expires_s=expires_s)


def queue_of(*policies: QueuePolicy, max_rows: int = 100, max_bytes: int = 1000) -> RequestQueue:
    return RequestQueue("m", Levels(policies or (QueuePolicy(),)), max_rows=max_rows, max_bytes=max_bytes)


def test_levels_are_served_in_order_and_each_first_come_first_served() -> None:
    queue = queue_of(QueuePolicy(), QueuePolicy())
    low, high, later = ticket(1), ticket(0), ticket(0)
    for each in (low, high, later):
        queue.add(each)

    assert list(queue) == [high, later, low]


def test_a_late_request_of_a_delay_level_is_served_after_those_that_are_not_but_before_the_next_level() -> None:
    queue = queue_of(LATE, QueuePolicy())
    late, low, punctual = ticket(0, expires_s=5.0), ticket(1), ticket(0)
    for each in (late, low, punctual):
        queue.add(each)

    gone = queue.expire(5.0)

    assert gone == []
    assert list(queue) == [punctual, late, low]


def test_what_is_late_is_rejected_by_default_and_what_is_past_its_deadline_always() -> None:
    queue = queue_of(LATE, QueuePolicy())
    expired, dead, delayed_and_dead = ticket(1, expires_s=1), ticket(1, deadline_s=1), ticket(0, expires_s=1)
    delayed_and_dead.request = InferenceRequest({"x": VALUES}, deadline_s=2)
    for each in (expired, dead, delayed_and_dead):
        queue.add(each)

    first = dict(queue.expire(1.0))
    second = dict(queue.expire(2.0))

    assert (type(first[expired]), str(first[expired])) == (UnavailableError, "Request timeout expired")
    assert isinstance(first[dead], DeadlineError)
    assert list(second) == [delayed_and_dead]
    assert isinstance(second[delayed_and_dead], DeadlineError)
    assert (len(queue), queue.rows, queue.size_bytes) == (0, 0, 0)


@pytest.mark.parametrize(
    ("policy", "max_rows", "max_bytes"),
    [(QueuePolicy(max_queue_size=2), 100, 1000), (QueuePolicy(), 2, 1000), (QueuePolicy(), 100, 8)],
)
def test_requests_rows_and_bytes_are_bounded(policy: QueuePolicy, max_rows: int, max_bytes: int) -> None:
    queue = queue_of(policy, max_rows=max_rows, max_bytes=max_bytes)
    first = ticket()
    for each in (first, ticket()):
        queue.check_room(0, 1, 1, 4)
        queue.add(each)

    with pytest.raises(BusyError, match=r"^Exceeds maximum queue size$"):
        queue.check_room(0, 1, 1, 4)
    queue.remove(first)

    queue.check_room(0, 1, 1, 4)


def test_one_request_of_any_size_is_let_into_an_empty_queue() -> None:
    queue_of(max_rows=2, max_bytes=8).check_room(0, 1, 50, 5000)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(0, 6)), max_size=60))
def test_no_sum_drifts_whatever_comes_and_goes(steps: Sequence[tuple[int, int, int]]) -> None:
    queue, inside = queue_of(LATE, QueuePolicy()), []
    for now, (action, rows, moment) in enumerate(steps):
        if action == 3 and inside:
            queue.remove(inside[moment % len(inside)])
            queue.remove(inside[moment % len(inside)])
        else:
            each = ticket(action % 2, rows=rows, size_bytes=rows * 4, expires_s=now + moment or None)
            queue.add(each)
            inside.append(each)
        queue.expire(now)
        inside = list(queue)

        assert len(queue) == len(inside)
        assert queue.rows == sum(each.request.rows for each in inside)
        assert queue.size_bytes == sum(each.size_bytes for each in inside)


def test_requests_that_left_are_forgotten_long_before_their_deadline() -> None:
    queue = queue_of()
    for _ in range(1000):
        each = ticket(deadline_s=1e9)
        queue.add(each)
        queue.remove(each)

    assert len(queue._instants) < 100
    assert not [item for item in gc.get_referrers(each) if isinstance(item, dict | list | tuple)]


@pytest.mark.parametrize(
    ("policy", "wanted_us", "wait_us"),
    [
        (QueuePolicy(default_timeout_us=50), 0, 50),
        (QueuePolicy(default_timeout_us=50), 20, 20),
        (QueuePolicy(default_timeout_us=50), 90, 50),
        (QueuePolicy(default_timeout_us=50, allow_timeout_override=False), 20, 50),
        (QueuePolicy(), 20, 20),
        (QueuePolicy(allow_timeout_override=False), 20, 0),
    ],
)
def test_a_request_may_only_shorten_its_wait(policy: QueuePolicy, wanted_us: int, wait_us: int) -> None:
    assert Levels((policy,)).wait_us(0, wanted_us) == wait_us


def test_requests_without_a_level_or_with_one_that_there_is_not_get_the_default() -> None:
    levels = Levels.of(
        DynamicBatching(
            priority_levels=3, default_priority_level=2, priority_policies={3: QueuePolicy(max_queue_size=7)}
        )
    )

    assert [levels.index(priority) for priority in (1, 2, 3, 0, 9)] == [0, 1, 2, 1, 1]
    assert [policy.max_queue_size for policy in levels.policies] == [0, 0, 7]
    assert Levels.of(DynamicBatching()).index(5) == 0
