# SPDX-License-Identifier: Apache-2.0
"""The scheduler of iterative models: a request has as many turns as the model asks for, each in a batch with others.

This is how text is generated: each turn makes one token of every request that is under way, a newcomer joins at the
next turn, and whoever is done leaves without waiting for the others (continuous, or in-flight, batching). Replies leave
after each turn; a caller who reads slowly holds up nobody else.

Source: Triton Inference Server, sequence batcher, `iterative_sequence`, and TRITONSERVER_REQUEST_RELEASE_RESCHEDULE.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack
from functools import partial
from itertools import count
from typing import cast

from dovetail.errors import DovetailError, EngineError, InvalidInputError, UnsupportedError
from dovetail.tensor import Array
from runtime_svc.configuration.serving_config import SequenceBatching
from runtime_svc.scheduling.base import SchedulerParts
from runtime_svc.scheduling.engine_queue import MAX_WAITING
from runtime_svc.scheduling.iterative.queue import IterativeQueue, OpenCall, Round
from runtime_svc.scheduling.iterative.turns import IterativeSession, Turn, TurnResult
from runtime_svc.scheduling.ordering import ReplyOrder
from runtime_svc.scheduling.reply_buffer import ReplyBuffer, only_reply
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.scheduling.sequences.table import not_started
from runtime_svc.scheduling.threaded import ThreadedScheduler
from runtime_svc.spare_time import SpareWork
from runtime_svc.statistics import Execution

_log = logging.getLogger(__name__)


class IterativeScheduler(ThreadedScheduler):
    """See `Scheduler`.

    Args:
        parts: See SchedulerParts; the configuration has iterative `sequences`.

    Raises:
        UnsupportedError: A session cannot run requests in turns.
    """

    _queue: IterativeQueue

    def __init__(self, parts: SchedulerParts) -> None:
        facts, config = parts.facts, parts.config.sequences or SequenceBatching()
        for session in parts.sessions:
            if not getattr(session, "iterative", False):
                raise UnsupportedError(
                    f"model '{facts.name}' is configured as iterative, but engine '{facts.engine}' runs a request once"
                )
        self._parts, self._model = parts, facts.name
        most_calls = max(facts.max_batch_size, 1)
        queue = IterativeQueue(
            facts.name,
            instances=len(parts.sessions),
            seats=config.max_candidates if config.oldest else most_calls,
            most_calls=most_calls,
            most_waiting=parts.config.max_queue_rows or MAX_WAITING,
            clock=parts.clock,
            delay_s=config.max_queue_delay_us / 1e6,
            preferred=config.preferred_batch_sizes,
        )
        self._order = ReplyOrder() if config.preserve_ordering else None
        self._keys = count(1)
        super().__init__(parts, queue, [partial(self._serve, number) for number in range(len(parts.sessions))])

    async def infer(self, request: InferenceRequest) -> Mapping[str, Array]:
        """The reply of a request that has exactly one; see `Scheduler`."""
        return await only_reply(self.responses(request), self._model)

    async def responses(self, request: InferenceRequest) -> AsyncGenerator[Mapping[str, Array], None]:
        """All replies, each after the turn that made it; see `Scheduler`.

        Raises:
            InvalidInputError: It has several rows, or goes on with a sequence: here a sequence is one request.
            DeadlineError: Its deadline passed, also between two turns.
        """
        call = self._call(request)
        async with AsyncExitStack() as stack:
            place = None if self._order is None else await stack.enter_async_context(self._order.place())
            self._queue.add(call)
            try:
                if place is not None:
                    await place.its_turn()
                while (reply := await call.replies.get()) is not None:
                    yield reply
            finally:
                self._leave(call)

    def _call(self, request: InferenceRequest) -> OpenCall:
        if request.rows != 1:
            raise InvalidInputError(
                f"inference request to model '{self._model}' must specify batch-size 1 due to requirements of sequence"
                " batcher"
            )
        step = request.sequence
        if step is not None and step.sequence_id not in (0, "") and not step.start:
            raise not_started(step.sequence_id, self._model)
        now_s = self._parts.clock.monotonic_s()
        late_s = now_s + request.timeout_us / 1e6 if request.timeout_us else math.inf
        return OpenCall(next(self._keys), request, ReplyBuffer(on_room=self._queue.wake), now_s, late_s)

    def _leave(self, call: OpenCall) -> None:
        """Nobody reads any more: the request has no further turn, and the model is told if it has one now."""
        if not call.replies.abandon():
            return
        running = self._queue.leave(call)
        if running is not None:
            number, place = running
            cancel = getattr(self._parts.sessions[number], "cancel", None)
            if cancel is not None:
                cancel(place)

    def _serve(self, number: int) -> None:
        session = cast(IterativeSession, self._parts.sessions[number])
        while (task := self._queue.take(number)) is not None:
            if isinstance(task, SpareWork):
                task.run(session)
            else:
                self._run(number, session, task)
            del task  # so that its arrays do not live on while the thread waits

    def _run(self, number: int, session: IterativeSession, task: Round) -> None:
        started_ns = time.perf_counter_ns()
        results = self._results(session, task)
        if any(result.error is None for result in results):
            self._record(task, results, time.perf_counter_ns() - started_ns)
        for call, result in zip(task.calls, results, strict=True):
            call.replies.push(result.replies)
            if result.error is not None or not result.again:
                call.replies.finish(result.error, wake=False)
        self._queue.finish(number, results)
        ReplyBuffer.wake([call.replies for call in task.calls])

    def _results(self, session: IterativeSession, task: Round) -> list[TurnResult]:
        turns = [Turn(call.key, call.request if call.turns == 1 else None) for call in task.calls]
        try:
            return session.run_turns(turns, task.ended)
        except DovetailError as error:
            fault = error
        except Exception:
            # The thread must outlive whatever a library throws, else the model would hang for good.
            _log.exception("engine.unexpected_error model=%s", self._model)
            fault = EngineError("the engine failed in a way it does not document; the log has the details")
        if turns:
            _log.warning("iterative.run_failed model=%s requests=%d why=%r", self._model, len(turns), str(fault))
        return [TurnResult(error=fault)] * len(turns)

    def _record(self, task: Round, results: list[TurnResult], infer_ns: int) -> None:
        ended = [
            call.waited_ns
            for call, result in zip(task.calls, results, strict=True)
            if not result.again and result.error is None and not call.replies.abandoned
        ]
        self._parts.record(Execution(len(task.calls), ended, 0, infer_ns, 0))


def start_iterative(parts: SchedulerParts) -> IterativeScheduler:
    """A running scheduler of an iterative model."""
    scheduler = IterativeScheduler(parts)
    scheduler.start()
    return scheduler
