# SPDX-License-Identifier: Apache-2.0
"""A run is stopped when the last of its callers has left, and only then."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping

import numpy as np
import pytest

from dovetail.errors import CancelledError
from dovetail.tensor import Array
from runtime_svc.configuration.serving_config import ServingConfig
from runtime_svc.scheduling.batch import Batch
from runtime_svc.scheduling.closing import CloseReason
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.scheduling.stopping import run_while_wanted
from runtime_svc.scheduling.ticket import Ticket
from runtime_svc.served_model import ServedModel
from runtime_svc.statistics import Refusal
from tests.fakes.fake_sessions import FakeSession, HeldSession, facts_for

pytestmark = pytest.mark.timeout(60)


class StoppableFake(HeldSession):
    """Its stoppable runs wait for `release` or their stop, whatever comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.switches: list[StoppableFakeRun] = []

    def stoppable(self) -> StoppableFakeRun:
        self.switches.append(StoppableFakeRun(self))
        return self.switches[-1]


class StoppableFakeRun:
    def __init__(self, session: StoppableFake) -> None:
        self._session = session
        self.stopped = threading.Event()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if self.stopped.is_set():
            raise CancelledError("stopped")
        result = self._session.run(feeds)
        if self.stopped.is_set():
            raise CancelledError("stopped")
        return result

    def stop(self) -> None:
        self.stopped.set()
        self._session.release()


def request(value: float = 1.0, rows: int = 1) -> InferenceRequest:
    return InferenceRequest({"x": np.full((rows, 2), value, np.float32)}, rows=rows)


async def running(model: ServedModel, session: HeldSession, values: list[float]) -> list[asyncio.Task[object]]:
    """Requests of one batch that runs: one before it holds the engine until all of them are queued."""
    first = asyncio.create_task(model.infer(request(0.0)))
    assert await asyncio.to_thread(session.started.wait, 30)
    session.started.clear()
    tasks: list[asyncio.Task[object]] = [asyncio.create_task(model.infer(request(value))) for value in values]
    while model.pending < len(values):
        await asyncio.sleep(0)
    session.release()
    await first
    assert await asyncio.to_thread(session.started.wait, 30)
    return tasks


@pytest.fixture
def session() -> StoppableFake:
    return StoppableFake()


async def test_the_run_ends_when_its_last_caller_leaves(session: StoppableFake) -> None:
    model = ServedModel.start(facts_for(session), [session])
    tasks = await running(model, session, [1.0, 2.0])

    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    assert not session.switches[-1].stopped.is_set()
    tasks[1].cancel()
    await asyncio.wait(tasks)
    assert session.switches[-1].stopped.is_set()

    session.release()
    assert (await model.infer(request(3.0)))["y"].tolist() == [[3.0, 3.0]]
    assert session.batch_rows == [1, 2, 1]
    snapshot = model.statistics.snapshot()
    assert snapshot.refusals == {Refusal.STOPPED: 2}
    assert (snapshot.success.count, snapshot.execution_count) == (2, 2)
    await model.close()


async def test_one_who_stays_gets_the_answer(session: StoppableFake) -> None:
    model = ServedModel.start(facts_for(session), [session])
    tasks = await running(model, session, [1.0, 2.0])

    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    session.release()

    assert (await tasks[1])["y"].tolist() == [[2.0, 2.0]]  # type: ignore[index]
    assert not session.switches[-1].stopped.is_set()
    await model.close()


async def test_a_split_request_stops_each_of_its_runs(session: StoppableFake) -> None:
    model = ServedModel.start(facts_for(session, max_batch_size=2), [session], ServingConfig(split_oversize=True))
    task = asyncio.create_task(model.infer(request(1.0, rows=4)))
    assert await asyncio.to_thread(session.started.wait, 30)

    task.cancel()
    await asyncio.wait([task])

    await model.close()
    assert session.switches[0].stopped.is_set()
    assert session.batch_rows == [2]


async def test_runs_known_to_be_short_are_not_made_stoppable() -> None:
    class Quick(FakeSession):
        made = 0

        def stoppable(self) -> FakeSession:
            self.made += 1
            return self

    session = Quick()
    model = ServedModel.start(facts_for(session), [session])
    for _ in range(50):
        await model.infer(request())

    assert 0 < session.made < 50
    await model.close()


async def test_callers_who_left_before_the_run_listened_are_noticed(session: StoppableFake) -> None:
    future: asyncio.Future[Mapping[str, Array]] = asyncio.get_running_loop().create_future()
    ticket = Ticket(request(), future, ())
    future.cancel()
    batch = Batch((ticket,), 1, 1, CloseReason.EMPTY)

    with pytest.raises(CancelledError):
        run_while_wanted(session.stoppable(), batch, ticket.request.feeds)

    assert session.runs == []
    assert ticket.on_leave is None
