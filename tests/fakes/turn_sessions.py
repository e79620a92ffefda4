# SPDX-License-Identifier: Apache-2.0
"""A session of an iterative model for tests: it shows who had a turn with whom, and is held if a test wants that."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence

import numpy as np

from dovetail.clock import Clock, SystemClock
from dovetail.errors import EngineError
from dovetail.tensor import Array, TensorSpec
from runtime_svc.configuration.serving_config import SequenceBatching, ServingConfig
from runtime_svc.model_facts import ModelFacts
from runtime_svc.scheduling.base import SchedulerParts
from runtime_svc.scheduling.iterative.scheduler import IterativeScheduler, start_iterative
from runtime_svc.scheduling.iterative.turns import Turn, TurnResult
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.statistics import Execution


class TurnSession:
    """`x` turns for a request, with a reply in each: 0, 1, …; -1 fails the run it is in, -2 itself only.

    Attributes:
        rounds: Values of `x` of the requests that had a turn together, run by run.
        known: Requests that it remembers: key -> `x` and turns so far.
        cancelled: Places that were told to have left.
    """

    concurrent = False
    iterative = True
    inputs = (TensorSpec("x", "INT32", (-1, -1)),)
    outputs = (TensorSpec("y", "INT32", (-1, 1)),)

    def __init__(self, *, hold: bool = False, last_only: bool = False) -> None:
        self.rounds: list[list[int]] = []
        self.known: dict[int, tuple[int, int]] = {}
        self.cancelled: list[int] = []
        self.closed = False
        self.started = threading.Semaphore(0)
        self._permits = threading.Semaphore(0)
        self._hold, self._last_only = hold, last_only

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        raise AssertionError("an iterative session was run as if its requests had one turn")

    def run_turns(self, turns: Sequence[Turn], ended: Sequence[int]) -> list[TurnResult]:
        assert not self.closed, "a closed session was run"
        for key in ended:
            self.known.pop(key, None)
        for turn in turns:
            if turn.opening is not None:
                self.known[turn.key] = (int(turn.opening.feeds["x"][0, 0]), 0)
        values = [self.known[turn.key][0] for turn in turns]
        if turns:
            self.rounds.append(values)
            self.started.release()
            if self._hold:
                assert self._permits.acquire(timeout=30), "nobody released the session"
        if -1 in values:
            raise EngineError("fake: all of it")
        return [self._result(turn.key) for turn in turns]

    def cancel(self, caller: int | None = None, run: int | None = None) -> None:
        assert caller is not None
        self.cancelled.append(caller)

    def release(self, runs: int = 1) -> None:
        self._permits.release(runs)

    def close(self) -> None:
        self.closed = True

    def _result(self, key: int) -> TurnResult:
        count, turn = self.known[key]
        self.known[key] = (count, turn + 1)
        if count == -2:
            del self.known[key]
            return TurnResult(error=EngineError("fake: this one"))
        again = turn + 1 < count
        if not again:
            del self.known[key]
        replies = [] if self._last_only and again else [{"y": np.full((1, 1), turn, np.int32)}]
        return TurnResult(replies, again)


def serve(
    *sessions: TurnSession,
    max_batch_size: int = 4,
    clock: Clock | None = None,
    recorded: list[Execution] | None = None,
    max_queue_rows: int = 0,
    **sequences: object,
) -> IterativeScheduler:
    """A running scheduler over sessions."""
    config = SequenceBatching(iterative=True, **sequences)  # type: ignore[arg-type]
    serving = ServingConfig(sequences=config, decoupled=True, max_queue_rows=max_queue_rows)
    facts = ModelFacts(
        "m", 1, TurnSession.inputs, TurnSession.outputs, max_batch_size, "a" * 64, "fake", "fake"
    ).served_as(serving)
    record = recorded.append if recorded is not None else lambda execution: None
    return start_iterative(SchedulerParts(facts, sessions, serving, record, clock or SystemClock()))


def turns(count: int, **options: object) -> InferenceRequest:
    """A request that has so many turns."""
    return InferenceRequest({"x": np.full((1, 1), count, np.int32)}, **options)  # type: ignore[arg-type]


def reading(served: IterativeScheduler, *requests: InferenceRequest) -> list[asyncio.Task[list[int]]]:
    """All replies to requests, each under way, queued before the next."""

    async def numbers(request: InferenceRequest) -> list[int]:
        return [reply["y"].item() async for reply in served.responses(request)]

    return [asyncio.ensure_future(numbers(request)) for request in requests]


async def begun(session: TurnSession) -> None:
    """Wait until a run has begun that nobody waited for yet."""
    assert await asyncio.to_thread(session.started.acquire, timeout=30)
