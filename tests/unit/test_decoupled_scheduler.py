# SPDX-License-Identifier: Apache-2.0
"""Decoupled models: any number of replies, a model that waits for its reader, and readers who leave."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import numpy as np
import pytest

from dovetail.clock import Clock, ManualClock, SystemClock
from dovetail.errors import DeadlineError, EngineError, InvalidInputError, UnavailableError, UnsupportedError
from dovetail.tensor import Array, TensorSpec
from runtime_svc.configuration.serving_config import ServingConfig
from runtime_svc.scheduling.base import SchedulerParts
from runtime_svc.scheduling.call_context import CallContext
from runtime_svc.scheduling.decoupled.scheduler import DecoupledScheduler, start_decoupled
from runtime_svc.scheduling.reply_buffer import PLACES
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.served_model import ModelFacts, ServedModel
from runtime_svc.spare_time import SpareWork
from tests.fakes.fake_sessions import FakeSession


class CountingSession:
    """Replies 0, 1, … as many as `x` says; a negative number means: that many, then fail. Held after `hold` replies."""

    concurrent = False
    decoupled = True
    inputs = (TensorSpec("x", "INT32", (-1, 1)),)
    outputs = (TensorSpec("y", "INT32", (-1, 1)),)

    def __init__(self, *, hold: int | None = None) -> None:
        self.given = 0
        self.contexts: list[Sequence[CallContext]] = []
        self.gone = threading.Event()
        self.cancelled = threading.Event()
        self.started = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.closed = False
        self._hold = hold

    def expect(self, contexts: Sequence[CallContext]) -> None:
        self.contexts.append(contexts)

    def cancel(self) -> None:
        self.cancelled.set()
        self.go_on.set()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        raise AssertionError("a decoupled session was run as if it had one reply")

    def run_decoupled(self, feeds: Mapping[str, Array], emit: Callable[[Mapping[str, Array]], None]) -> None:
        self.started.release()
        count = int(feeds["x"][0, 0])
        try:
            for number in range(abs(count)):
                if number == self._hold:
                    assert self.go_on.wait(30), "nobody let the session go on"
                emit({"y": np.full((1, 1), number, np.int32)})
                self.given += 1
        except Exception:
            self.gone.set()
            raise
        if count < 0:
            raise EngineError("fake: no more")

    def close(self) -> None:
        self.closed = True


def scheduler(
    *sessions, clock: Clock | None = None, recorded: list | None = None, **config: object
) -> DecoupledScheduler:
    facts = ModelFacts("m", 1, sessions[0].inputs, sessions[0].outputs, 8, "a" * 64, "fake", "fake")
    record = recorded.append if recorded is not None else lambda execution: None
    serving = ServingConfig(decoupled=True, **config)  # type: ignore[arg-type]
    return start_decoupled(SchedulerParts(facts, sessions, serving, record, clock or SystemClock()))


def request(count: int, **options: object) -> InferenceRequest:
    return InferenceRequest({"x": np.full((1, 1), count, np.int32)}, **options)  # type: ignore[arg-type]


async def numbers(replies: AsyncIterator[Mapping[str, Array]]) -> list[int]:
    return [reply["y"].item() async for reply in replies]


async def test_any_number_of_replies_comes_in_order() -> None:
    recorded: list = []
    served = scheduler(CountingSession(), recorded=recorded)

    got = [await numbers(served.responses(request(count))) for count in (0, 1, 3, 100)]
    await served.close()

    assert got == [[], [0], [0, 1, 2], list(range(100))]
    assert [execution.rows for execution in recorded] == [1, 1, 1, 1]


async def test_an_error_comes_after_the_replies_before_it() -> None:
    recorded: list = []
    served = scheduler(CountingSession(), recorded=recorded)
    got: list[int] = []

    async def read() -> None:
        async for reply in served.responses(request(-3)):
            got.append(reply["y"].item())

    with pytest.raises(EngineError, match="no more"):
        await read()
    assert await numbers(served.responses(request(1))) == [0]  # the instance goes on
    await served.close()

    assert got == [0, 1, 2]
    assert len(recorded) == 1


async def test_an_error_that_no_engine_should_raise_is_told_without_its_text() -> None:
    class Wrong(CountingSession):
        def run_decoupled(self, feeds, emit):
            raise KeyError("secret")

    served = scheduler(Wrong())

    with pytest.raises(EngineError) as caught:
        await numbers(served.responses(request(1)))
    await served.close()

    assert "secret" not in str(caught.value)


async def test_the_model_waits_while_nobody_reads() -> None:
    session = CountingSession()
    served = scheduler(session)
    replies = served.responses(request(1000))

    first = await anext(replies)
    await asyncio.to_thread(lambda: session.go_on.wait(0.2))  # nothing sets it: time to run ahead if it could
    ahead = session.given
    rest = await numbers(replies)
    await served.close()

    assert first["y"].item() == 0
    assert ahead <= PLACES + 2
    assert rest == list(range(1, 1000))


async def test_a_reader_who_leaves_ends_the_run_also_while_the_model_waits_for_him() -> None:
    session = CountingSession()
    served = scheduler(session)
    replies = served.responses(request(1_000_000))
    await anext(replies)

    await replies.aclose()

    assert await asyncio.to_thread(session.gone.wait, 30)
    assert await numbers(served.responses(request(2))) == [0, 1]
    await served.close()


async def test_a_session_that_can_be_told_is_told_at_once() -> None:
    session = CountingSession(hold=1)
    served = scheduler(session)
    replies = served.responses(request(2))
    await anext(replies)

    await replies.aclose()

    assert await asyncio.to_thread(session.cancelled.wait, 30)
    await served.close()


async def test_a_cancelled_reader_leaves_too() -> None:
    session = CountingSession(hold=0)
    served = scheduler(session)
    task = asyncio.ensure_future(numbers(served.responses(request(2))))
    assert await asyncio.to_thread(session.started.acquire, timeout=30)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await asyncio.to_thread(session.gone.wait, 30)
    await served.close()


async def test_a_request_that_nobody_waits_for_is_never_run() -> None:
    session = CountingSession(hold=0)
    served = scheduler(session)
    first = asyncio.ensure_future(numbers(served.responses(request(1))))
    assert await asyncio.to_thread(session.started.acquire, timeout=30)
    second = asyncio.ensure_future(numbers(served.responses(request(1))))
    await asyncio.sleep(0)
    assert served.pending == 1

    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    session.go_on.set()
    await first
    await served.close()

    assert served.pending == 0
    assert len(session.contexts) == 1


@pytest.mark.parametrize(
    ("options", "error"),
    [({"deadline_s": 1.0}, DeadlineError), ({"timeout_us": 1000}, UnavailableError)],
    ids=["deadline", "timeout"],
)
async def test_a_request_that_waited_for_too_long_is_never_run(options: dict, error: type[Exception]) -> None:
    clock, session = ManualClock(), CountingSession(hold=0)
    served = scheduler(session, clock=clock)
    first = asyncio.ensure_future(numbers(served.responses(request(1))))
    assert await asyncio.to_thread(session.started.acquire, timeout=30)
    second = asyncio.ensure_future(numbers(served.responses(request(1, **options))))
    await asyncio.sleep(0)

    clock.advance(2)
    session.go_on.set()
    with pytest.raises(error):
        await second
    await first
    await served.close()

    assert len(session.contexts) == 1


async def test_instances_serve_side_by_side() -> None:
    sessions = [CountingSession(hold=1), CountingSession(hold=1)]
    served = scheduler(*sessions)
    streams = [served.responses(request(2)) for _ in sessions]

    firsts = [await anext(stream) for stream in streams]  # both run: neither goes on by itself
    for session in sessions:
        session.go_on.set()
    rest = [await numbers(stream) for stream in streams]
    await served.close()

    assert served.instances == 2
    assert [first["y"].item() for first in firsts] == [0, 0]
    assert rest == [[1], [1]]


async def test_the_session_is_told_whose_request_it_is() -> None:
    session = CountingSession()
    served = scheduler(session)

    await numbers(served.responses(request(1, deadline_s=1e12)))
    await served.close()

    assert session.contexts == [[CallContext(1, 1e12, None)]]


@pytest.mark.parametrize(("count", "what"), [(0, "no reply"), (2, "more than one reply")])
async def test_who_needs_one_reply_is_told_if_there_is_not_one(count: int, what: str) -> None:
    served = scheduler(CountingSession())

    with pytest.raises(UnsupportedError, match=what):
        await served.infer(request(count))
    reply = await served.infer(request(1))
    await served.close()

    assert reply["y"].item() == 0


async def test_a_full_queue_and_too_many_rows_are_refused() -> None:
    session = CountingSession(hold=0)
    served = scheduler(session, max_queue_rows=1)
    tasks = [asyncio.ensure_future(numbers(served.responses(request(1))))]
    assert await asyncio.to_thread(session.started.acquire, timeout=30)
    tasks.append(asyncio.ensure_future(numbers(served.responses(request(1)))))
    await asyncio.sleep(0)

    with pytest.raises(UnavailableError, match="Exceeds maximum queue size"):
        await numbers(served.responses(request(1)))
    with pytest.raises(InvalidInputError, match="batch-size must be <= 8 for 'm'"):
        await numbers(served.responses(request(1, rows=9)))
    session.go_on.set()
    await asyncio.gather(*tasks)
    await served.close()


async def test_closing_serves_what_waits_and_takes_nothing_more() -> None:
    session = CountingSession(hold=0)
    served = scheduler(session)
    tasks = [asyncio.ensure_future(numbers(served.responses(request(2)))) for _ in range(3)]
    assert await asyncio.to_thread(session.started.acquire, timeout=30)

    closing = asyncio.ensure_future(served.close())
    await asyncio.sleep(0)
    session.go_on.set()
    await closing

    assert await asyncio.gather(*tasks) == [[0, 1]] * 3
    assert session.closed
    with pytest.raises(UnavailableError, match="being unloaded"):
        await numbers(served.responses(request(1)))


async def test_spare_work_runs_while_nothing_waits_and_is_cancelled_at_the_end() -> None:
    session = CountingSession()
    served = scheduler(session)
    work: SpareWork = SpareWork(lambda given: given)

    served.offer_spare(work)
    assert await asyncio.wrap_future(work.future) is session
    await served.close()
    late: SpareWork = SpareWork(lambda given: given)
    served.offer_spare(late)

    assert late.future.cancelled()


async def test_an_engine_with_one_reply_cannot_serve_a_decoupled_model() -> None:
    with pytest.raises(UnsupportedError, match="gives one reply to each request"):
        scheduler(FakeSession())


async def test_a_served_model_is_decoupled_by_its_configuration() -> None:
    session = CountingSession()
    facts = ModelFacts("m", 1, session.inputs, session.outputs, 8, "a" * 64, "fake", "fake")
    model = ServedModel.start(facts, [session], ServingConfig(decoupled=True))

    with model.lease():
        got = await numbers(model.responses(request(3)))
    await model.close()

    assert model.decoupled
    assert got == [0, 1, 2]
    assert model.statistics.snapshot().success.count == 1
