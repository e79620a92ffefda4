# SPDX-License-Identifier: Apache-2.0
"""The gate between models: who may run while others do, in which order, and that one alone never waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from dovetail.errors import InvalidInputError
from runtime_svc.scheduling.fairness import Gate, Share
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.served_model import ServedModel
from tests.fakes.fake_sessions import HeldSession, facts_for
from tests.fakes.held_model import rows_of


class Waiting:
    """An instance's thread at the gate."""

    def __init__(self, gate: Gate, share: Share, entered: Callable[[], None]) -> None:
        def enter() -> None:
            gate.enter(share)
            entered()

        self.thread = threading.Thread(target=enter)
        before = share.waiting + share.running
        self.thread.start()
        while share.waiting + share.running == before:
            pass  # the thread is on its way to the gate


def test_a_model_alone_is_never_held_up_whatever_its_instances() -> None:
    gate = Gate(2)
    share = gate.share(threads=2)

    assert all(gate.try_enter(share) for _ in range(5))


def test_a_second_model_waits_until_there_is_room() -> None:
    gate = Gate(2)
    one, two = gate.share(threads=1), gate.share(threads=1)

    assert gate.try_enter(one)
    assert gate.try_enter(two)
    assert not gate.try_enter(two)
    gate.leave(one, 1.0)
    assert gate.try_enter(two)


def test_a_run_larger_than_the_gate_passes_when_it_is_empty() -> None:
    gate = Gate(2)
    large, small = gate.share(threads=8), gate.share()

    assert gate.try_enter(small)
    assert not gate.try_enter(large)
    gate.leave(small, 0.1)
    assert gate.try_enter(large)
    assert not gate.try_enter(small)


def order_of(gate: Gate, first: Share, shares: dict[str, Share], seconds: float, turns: int) -> list[str]:
    """Who passes a gate of one place, if all always want to."""
    order: list[str] = []
    assert gate.try_enter(first)
    threads = [Waiting(gate, share, lambda name=name: order.append(name)) for name, share in shares.items()]  # type: ignore[misc]
    gate.leave(first, 0.0)
    for turn in range(turns):
        while len(order) == turn:
            pass  # the thread that was let in says so
        name = order[-1]
        threads.append(Waiting(gate, shares[name], lambda name=name: order.append(name)))  # type: ignore[misc]
        gate.leave(shares[name], seconds)
    while len(order) <= turns:
        pass
    for _ in range(len(shares)):
        gate.leave(shares[order[-1]], 0.0)
    for each in threads:
        each.thread.join(30)
    return order[:turns]


def test_time_is_shared_by_weight() -> None:
    gate = Gate(1)
    shares = {"a": gate.share(weight=1.0), "b": gate.share(weight=3.0)}

    order = order_of(gate, gate.share(), shares, 1.0, 40)

    assert 28 <= order.count("b") <= 32


def test_a_model_that_was_idle_has_no_credit_from_the_past() -> None:
    gate = Gate(1)
    busy, idle = gate.share(), gate.share()
    for _ in range(100):
        assert gate.try_enter(busy)
        gate.leave(busy, 1.0)

    order = order_of(gate, gate.share(), {"busy": busy, "idle": idle}, 1.0, 20)

    assert 8 <= order.count("busy") <= 12


def test_a_gate_needs_room_and_a_share_a_weight() -> None:
    with pytest.raises(InvalidInputError, match="expected 0 or more"):
        Gate(-1)
    with pytest.raises(InvalidInputError, match="expected more than 0"):
        Gate(1).share(weight=0)


async def test_a_batch_is_closed_behind_the_gate_so_it_has_all_that_came_meanwhile() -> None:
    gate = Gate(1)
    mine, other = HeldSession(), HeldSession()
    models = [
        ServedModel.start(facts_for(session, name), [session], gate=gate)
        for session, name in ((mine, "mine"), (other, "other"))
    ]
    running = asyncio.create_task(models[1].infer(InferenceRequest({"x": rows_of(1)})))
    await asyncio.to_thread(other.started.wait, 30)
    waiting = [asyncio.create_task(models[0].infer(InferenceRequest({"x": rows_of(1, n)}))) for n in range(3)]
    await asyncio.sleep(0)
    assert not mine.runs

    mine.release(10)
    other.release(10)
    await asyncio.gather(running, *waiting)
    for model in models:
        await model.close()

    assert mine.batch_rows == [3]


async def test_a_session_that_works_elsewhere_holds_no_turn() -> None:
    gate = Gate(1)
    outside, inside = HeldSession(), HeldSession()
    outside.outside = True  # type: ignore[attr-defined]
    models = [
        ServedModel.start(facts_for(session, name), [session], gate=gate)
        for session, name in ((outside, "outside"), (inside, "inside"))
    ]
    waiting = asyncio.create_task(models[0].infer(InferenceRequest({"x": rows_of(1)})))
    await asyncio.to_thread(outside.started.wait, 30)
    inside.release()
    answer = await models[1].infer(InferenceRequest({"x": rows_of(1, 5)}))  # as the first may be waiting for
    outside.release()
    await waiting
    for model in models:
        await model.close()

    assert float(answer["y"][0, 0]) == 5
