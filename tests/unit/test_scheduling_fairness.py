# SPDX-License-Identifier: Apache-2.0
"""The gate between models: who may run while others do, in which order, and that one alone never waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping

import pytest

from dovetail.clock import ManualClock
from dovetail.errors import InvalidInputError
from dovetail.tensor import Array
from runtime_svc.configuration.serving_config import ServingConfig
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


def saturated(gate: Gate, shares: dict[str, Share], clock: ManualClock, turns: int) -> list[str]:
    """Who passes a gate of one place, if each has a thread that begins its next run as soon as one ends."""
    order: list[str] = []
    door = gate.share()
    assert gate.try_enter(door)

    def serve(name: str, share: Share, others: list[Share]) -> None:
        gate.enter(share)
        while True:
            order.append(name)
            clock.advance(1.0)
            if len(order) >= turns:
                gate.leave(share, 1.0)
                return
            while not all(other.waiting for other in others):
                pass  # the thread has ended its own, or not begun at all
            if place := gate.go_on(share, 1.0):
                gate.wait(place)

    threads = [
        threading.Thread(target=serve, args=(name, share, [each for each in shares.values() if each is not share]))
        for name, share in shares.items()
    ]
    for thread in threads:
        thread.start()
    while not all(share.waiting for share in shares.values()):
        pass
    gate.leave(door, 0.0)
    for thread in threads:
        thread.join(30)
    return order[:turns]


def test_whoever_is_still_behind_goes_on_so_that_weights_count_for_one_instance_each() -> None:
    clock = ManualClock()
    gate = Gate(1, clock=clock)

    order = saturated(gate, {"a": gate.share(weight=1.0), "b": gate.share(weight=3.0)}, clock, 40)

    assert 28 <= order.count("b") <= 32


class Runs:
    """Models whose runs take a known time, at a gate of two places."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.gate = Gate(2, clock=self.clock)

    def model(self, seconds: float, threads: int = 1) -> Share:
        """One that ran before."""
        share = self.gate.share(threads=threads)
        assert self.gate.try_enter(share)
        self.end(share, seconds)
        return share

    def end(self, share: Share, seconds: float) -> None:
        self.clock.advance(seconds)
        self.gate.leave(share, seconds)


def test_a_short_run_passes_beside_a_long_one_but_no_other_and_none_of_unknown_length() -> None:
    runs = Runs()
    short, medium, long = runs.model(0.01), runs.model(0.5), runs.model(1.0, threads=2)

    assert runs.gate.try_enter(long)
    assert not runs.gate.try_enter(medium)
    assert not runs.gate.try_enter(runs.gate.share())
    assert runs.gate.try_enter(short)


def test_short_runs_pass_only_as_long_as_their_model_has_not_used_more_than_the_others() -> None:
    runs = Runs()
    short, long = runs.model(0.01, threads=2), runs.model(1.0, threads=2)
    assert runs.gate.try_enter(long)

    assert runs.gate.try_enter(short)
    runs.gate.leave(short, 0.1)  # more than the clock says has passed
    ahead = runs.gate.try_enter(short)
    runs.clock.advance(0.1)

    assert not ahead
    assert runs.gate.try_enter(short)


def test_short_runs_together_take_no_more_places_than_there_are() -> None:
    runs = Runs()
    short, long = [runs.model(0.01) for _ in range(3)], runs.model(1.0, threads=2)
    assert runs.gate.try_enter(long)

    assert [runs.gate.try_enter(share) for share in short] == [True, True, False]
    runs.end(short[0], 0.01)
    assert runs.gate.try_enter(short[2])


def test_a_short_run_that_waits_for_others_like_it_passes_when_one_ends() -> None:
    runs = Runs()
    short, long = [runs.model(0.01) for _ in range(3)], runs.model(1.0, threads=2)
    assert runs.gate.try_enter(long)
    assert [runs.gate.try_enter(share) for share in short[:2]] == [True, True]

    third = Waiting(runs.gate, short[2], lambda: None)
    runs.end(short[0], 0.01)
    third.thread.join(30)

    assert short[2].aside == 1
    assert long.running == 1


async def test_a_model_with_requests_goes_on_until_it_is_anothers_turn() -> None:
    gate, order = Gate(1), list[str]()

    class Noting(HeldSession):
        def compute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
            order.append(self.name)
            return super().compute(feeds)

    models = []
    for name, weight in (("favoured", 1e9), ("other", 1.0)):
        session = Noting()
        session.name = name  # type: ignore[attr-defined]
        config = ServingConfig(weight=weight)
        models.append(ServedModel.start(facts_for(session, name, max_batch_size=0), [session], config, gate=gate))
        session.release(10)
    door = gate.share()
    assert gate.try_enter(door)
    asked = [asyncio.create_task(model.infer(InferenceRequest({"x": rows_of(1)}))) for model in models * 3]
    while gate.waiting < len(models):
        await asyncio.sleep(0)

    gate.leave(door, 0.0)
    await asyncio.gather(*asked)
    for model in models:
        await model.close()

    assert sorted(order) == ["favoured"] * 3 + ["other"] * 3
    assert order[-2:] == ["other"] * 2


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
