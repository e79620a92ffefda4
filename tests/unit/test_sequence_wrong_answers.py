# SPDX-License-Identifier: Apache-2.0
"""Any mix of sequences, strategies, slots, instances and callers who leave: no reply is wrong, every request ends."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.errors import CancelledError, InvalidInputError
from runtime_svc.configuration.serving_config import SequenceBatching
from tests.fakes.fake_sequence_sessions import STATE, SummingStateSession, serve, step

EXAMPLES = int(os.environ.get("DOVETAIL_WRONG_ANSWER_EXAMPLES", "150"))


@dataclass(frozen=True)
class Plan:
    """What is sent: the next value of a sequence, and whether its caller leaves at once or a little later."""

    oldest: bool
    slots: int
    instances: int
    lengths: tuple[int, ...]
    turns: tuple[tuple[int, int], ...]  # which sequence goes on, and after how many turns of the loop its caller leaves


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=6))
    order = draw(st.permutations([place for place, length in enumerate(lengths) for _ in range(length)]))
    leaves = [draw(st.sampled_from((-1, -1, -1, -1, -1, 0, 1, 3))) for _ in order]
    return Plan(
        draw(st.booleans()), draw(st.integers(1, 4)), draw(st.integers(1, 2)), tuple(lengths),
        tuple(zip(order, leaves, strict=True)),
    )  # fmt: skip


@settings(max_examples=EXAMPLES, deadline=None)
@given(plans())
def test_every_reply_is_the_one_of_its_own_sequence(plan: Plan) -> None:
    asyncio.run(_check(plan))


async def _check(plan: Plan) -> None:
    config = SequenceBatching(oldest=plan.oldest, states=(STATE,), max_candidates=plan.slots, max_idle_us=600_000_000)
    sessions = [SummingStateSession() for _ in range(plan.instances)]
    served = serve(config, *sessions, max_batch_size=plan.slots)
    sent = [0] * len(plan.lengths)
    tasks: list[tuple[int, int, asyncio.Task[float]]] = []
    disturbed: set[int] = set()

    async def ask(place: int, turn: int) -> float:
        request = step(place + 1, _value(place, turn), start=turn == 0, end=turn == plan.lengths[place] - 1)
        return float((await served.scheduler.infer(request))["OUTPUT"].item())

    async def leave(task: asyncio.Task[float], turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()

    leaving = []
    for place, after in plan.turns:
        task = asyncio.create_task(ask(place, sent[place]))
        tasks.append((place, sent[place], task))
        sent[place] += 1
        await asyncio.sleep(0)  # it is queued now
        if after >= 0:
            disturbed.add(place)
            leaving.append(asyncio.create_task(leave(task, after)))
    results = await asyncio.wait_for(
        asyncio.gather(*(task for _, _, task in tasks), return_exceptions=True), timeout=60
    )
    await asyncio.gather(*leaving)
    await served.scheduler.close()

    for (place, turn, _), result in zip(tasks, results, strict=True):
        if isinstance(result, float):
            assert result == sum(_value(place, earlier) for earlier in range(turn + 1))
        else:
            assert place in disturbed
            assert isinstance(result, CancelledError | InvalidInputError | asyncio.CancelledError)


def _value(place: int, turn: int) -> float:
    return float((place + 1) * 100 + turn + 1)
