# SPDX-License-Identifier: Apache-2.0
"""The scheduler of models with sequences: requests of one sequence run in order, on one instance, with its state.

A sequence is over with its last request, when nothing came for too long, or when one of its requests was withdrawn or
came too late: what follows could not be right without it. A session that was started again has forgotten its sequences,
so they are over, too.

When an artifact is swapped, sequences stay where they began: the new scheduler sends a request whose sequence is open
in the old one there, and the old one ends when its last sequence has ended or is idle. Without a successor (the model
is unloaded) what is queued is served, and nothing more is waited for.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from dovetail.errors import InvalidInputError
from dovetail.tensor import Array
from runtime_svc.configuration.serving_config import ControlKind, SequenceBatching
from runtime_svc.scheduling.base import SchedulerParts
from runtime_svc.scheduling.decoupled.session import check_decoupled
from runtime_svc.scheduling.engine_queue import MAX_WAITING
from runtime_svc.scheduling.reply_buffer import ReplyBuffer, only_reply
from runtime_svc.scheduling.request import InferenceRequest, SequenceStep
from runtime_svc.scheduling.sequences.batch import SequencePlan
from runtime_svc.scheduling.sequences.instance import SequenceInstance
from runtime_svc.scheduling.sequences.queue import SequenceQueue
from runtime_svc.scheduling.sequences.signature import check_id, check_sequences
from runtime_svc.scheduling.sequences.table import QueuedStep, SequenceTable
from runtime_svc.scheduling.threaded import ThreadedScheduler


class SequenceScheduler(ThreadedScheduler):
    """See `Scheduler`.

    Args:
        parts: See SchedulerParts; the configuration has `sequences`.

    Raises:
        InvalidInputError: The configuration does not fit the model.
        UnsupportedError: The model is decoupled, and a session gives one reply only.
    """

    _queue: SequenceQueue

    def __init__(self, parts: SchedulerParts) -> None:
        config, facts = parts.config.sequences or SequenceBatching(), parts.facts
        self._decoupled = parts.config.decoupled
        if self._decoupled:
            check_decoupled(parts)
        check_sequences(config, parts.sessions[0], facts.name)
        self._parts, self._model = parts, facts.name
        self._corrid = next((control for control in config.controls if control.kind is ControlKind.CORRID), None)
        plan = SequencePlan.of(config, facts.max_batch_size, alone=self._decoupled)
        table = SequenceTable(
            facts.name,
            instances=len(parts.sessions),
            slots=(config.max_candidates if config.oldest else 0) or plan.most_rows,
            max_idle_s=config.max_idle_us / 1e6,
        )
        most = parts.config.max_queue_rows or MAX_WAITING
        queue = SequenceQueue(facts.name, plan=plan, table=table, clock=parts.clock, most=most)
        self._predecessor: SequenceScheduler | None = None
        self._instances = [
            SequenceInstance(number, session, queue, model=facts.name, record=parts.record, alone=self._decoupled)
            for number, session in enumerate(parts.sessions)
        ]
        super().__init__(parts, queue, [instance.serve for instance in self._instances])

    def take_over(self, replaced: object) -> None:
        """Send requests of sequences that are open in the scheduler that this one replaces there, until they end."""
        if isinstance(replaced, SequenceScheduler):
            self._predecessor = replaced
            replaced._queue.keep_open()

    def holds(self, sequence_id: int | str) -> bool:
        """True if that sequence is open here, or where this scheduler sends it."""
        if self._queue.holds(sequence_id):
            return True
        return self._predecessor is not None and self._predecessor.holds(sequence_id)

    async def infer(self, request: InferenceRequest) -> Mapping[str, Array]:
        """See `Scheduler`.

        Raises:
            InvalidInputError: It belongs to no sequence, or to one that was not started, or has several rows.
            CancelledError: An earlier request of its sequence was withdrawn.
        """
        if self._decoupled:
            return await only_reply(self.responses(request), self._model)
        step = self._checked_step(request)
        elsewhere = self._elsewhere(step)
        if elsewhere is not None:
            return await elsewhere.infer(request)
        queued = self._queued(request, step)
        self._queue.add(queued)
        try:
            return await queued.future
        except asyncio.CancelledError:
            self._leave(queued)
            raise

    async def responses(self, request: InferenceRequest) -> AsyncGenerator[Mapping[str, Array], None]:
        """All replies, each as soon as the model gives it; the one if it is not decoupled. See `Scheduler`."""
        if not self._decoupled:
            yield await self.infer(request)
            return
        step = self._checked_step(request)
        elsewhere = self._elsewhere(step)
        if elsewhere is not None:
            async with aclosing(elsewhere.responses(request)) as responses:
                async for outputs in responses:
                    yield outputs
            return
        queued = self._queued(request, step)
        self._queue.add(queued)
        try:
            while (reply := await queued.replies.get()) is not None:
                yield reply
        finally:
            if queued.replies.abandon():
                self._leave(queued)

    async def close(self) -> None:
        """See `Scheduler`; with a successor, open sequences are served to their end."""
        if self._predecessor is not None and not self._queue.has_successor:
            self._predecessor.cut()
        await super().close()

    def cut(self) -> None:
        """There is no successor any more: serve what is queued, and end."""
        self._queue.cut()
        if self._predecessor is not None:
            self._predecessor.cut()

    def _leave(self, queued: QueuedStep) -> None:
        """Nobody waits for the answer any more: withdraw the request, or have the model told."""
        self._queue.withdraw(queued)
        for instance in self._instances:
            instance.leave(queued)

    def _elsewhere(self, step: SequenceStep) -> SequenceScheduler | None:
        return None if self._predecessor is None or step.start else self._holder(step.sequence_id)

    def _holder(self, sequence_id: int | str) -> SequenceScheduler | None:
        """The scheduler before this one, if it has that sequence and this one has not."""
        before = self._predecessor
        if before is None or self._queue.holds(sequence_id):
            return None
        if before.holds(sequence_id):
            return before
        if not before.alive:
            self._predecessor = before._predecessor
        return None

    def _checked_step(self, request: InferenceRequest) -> SequenceStep:
        if request.rows != 1:
            raise InvalidInputError(
                f"inference request to model '{self._model}' must specify batch-size 1 due to requirements of sequence"
                " batcher"
            )
        step = request.sequence
        if step is None or step.sequence_id in (0, ""):
            raise InvalidInputError(
                f"inference request to model '{self._model}' must specify a non-zero or non-empty correlation ID"
            )
        if self._corrid is not None:
            check_id(self._corrid, step.sequence_id, self._model)
        return step

    def _queued(self, request: InferenceRequest, step: SequenceStep) -> QueuedStep:
        now_s = self._parts.clock.monotonic_s()
        late_s = math.inf if request.deadline_s is None else request.deadline_s
        if request.timeout_us:
            late_s = min(late_s, now_s + request.timeout_us / 1e6)
        layout = tuple(sorted((name, array.dtype.str, array.shape) for name, array in request.feeds.items()))
        answer_to = ReplyBuffer() if self._decoupled else asyncio.get_running_loop().create_future()
        return QueuedStep(request, step, layout, answer_to, now_s, late_s)


def start_sequences(parts: SchedulerParts) -> SequenceScheduler:
    """A running scheduler of a model with sequences."""
    scheduler = SequenceScheduler(parts)
    scheduler.start()
    return scheduler
