# SPDX-License-Identifier: Apache-2.0
"""The requests of sequences that wait, between the event loop and the threads of the instances.

Which sequence has which slot is `table`'s; here are the lock, time, and the ends of sequences: idle, too late,
withdrawn, or forgotten by a session that was started again.

Source: Triton Inference Server, sequence batcher (statuses and texts).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from typing import Any

from dovetail.clock import Clock
from dovetail.errors import CancelledError, DeadlineError, DovetailError, UnavailableError
from runtime_svc.scheduling.engine_queue import EngineQueue
from runtime_svc.scheduling.sequences.batch import SequenceBatch, SequencePlan, form_alone, form_direct, form_oldest
from runtime_svc.scheduling.sequences.table import OpenSequence, QueuedStep, SequenceTable, not_started
from runtime_svc.spare_time import SpareWork

_log = logging.getLogger(__name__)

EXPIRED = "timeout of the corresponding sequence has been expired"
STOPPING = "Server is stopping, scheduler for model has stopped accepting new inference requests"


class SequenceQueue(EngineQueue):
    """See the module. `add` and `withdraw` belong to the event loop, `take` and `finish` to instances' threads.

    Args:
        model: Name, for messages.
        plan: Of the model.
        table: Used by nobody else.
        clock: Judges idle time and deadlines.
        most: Most requests that wait.
    """

    def __init__(self, model: str, *, plan: SequencePlan, table: SequenceTable, clock: Clock, most: int) -> None:
        super().__init__()
        self._model, self._plan, self._table, self._clock, self._most = model, plan, table, clock, most
        self._former = form_alone if plan.alone else form_oldest if plan.config.oldest else form_direct
        self._pending = 0
        self._has_successor = False
        self._first_idle_s = -math.inf  # no sequence is idle for too long before
        self._first_late_s = math.inf  # no request is late before

    @property
    def pending(self) -> int:
        """Requests that wait."""
        return self._pending

    @property
    def has_successor(self) -> bool:
        """See `keep_open`."""
        return self._has_successor

    def holds(self, sequence_id: int | str) -> bool:
        """True if that sequence is open here."""
        with self._changed:
            return self._table.has(sequence_id)

    def add(self, queued: QueuedStep) -> None:
        """Put a request into its sequence's queue.

        Raises:
            InvalidInputError: Its sequence is not open, and it does not start one.
            UnavailableError: Too many wait, or no more sequences are taken.
        """
        step = queued.step
        with self._changed:
            self._end_idle(queued.arrived_s)
            open_here = self._table.has(step.sequence_id)
            if self._closed and not (self._has_successor and open_here):
                raise UnavailableError(STOPPING)
            if self._pending >= self._most:
                raise UnavailableError("Exceeds maximum queue size")
            if step.start and open_here:
                _log.warning("sequence.restarted model=%s sequence=%r", self._model, step.sequence_id)
            self._table.add(queued)
            self._pending += 1
            self._first_late_s = min(self._first_late_s, queued.late_s)
            self._changed.notify_all()

    def withdraw(self, queued: QueuedStep) -> None:
        """Its caller is gone: if it waits, its sequence is over with the request ahead of it."""
        with self._changed:
            sequence = next((each for each in self._table.sequences() if queued in each.queue), None)
            if sequence is not None:
                why = f"sequence {sequence.id} of model '{self._model}' was ended: one of its requests was cancelled"
                self._give_up(sequence, self._table.end_before(sequence, queued), CancelledError(why))

    def give_up(self, sequence: OpenSequence, why: DovetailError) -> None:
        """End a sequence before its time; its requests that wait are told why."""
        with self._changed:
            self._end(sequence, why)

    def keep_open(self) -> None:
        """There is a successor: when closed, serve the sequences that are open until they end."""
        with self._changed:
            self._has_successor = True

    def cut(self) -> None:
        """There is no successor any more: when closed, end once what waits has been served."""
        with self._changed:
            self._has_successor = False
            self._changed.notify_all()

    def take(self, instance: int, generation_now: Callable[[], int]) -> SequenceBatch | SpareWork[Any] | None:
        """The next run of an instance, else spare work; blocks while there is neither. None once all is over.

        Args:
            instance: Its number.
            generation_now: Which start of its session this is: sequences of an earlier one are over.
        """
        with self._changed:
            while True:
                now_s, generation = self._clock.monotonic_s(), generation_now()
                self._end_overdue(instance, generation, now_s)
                waiting = self._table.waiting(instance)
                wait_s = self._wait_s(waiting, now_s) if waiting else None
                if waiting and wait_s is None:
                    return self._form(instance, generation)
                if self._closed and next(iter(self._table.sequences()), None) is None:
                    self._changed.notify_all()
                    return None
                if self._spare and not waiting:
                    return self._spare.take()
                self._changed.wait(self._until(wait_s, now_s))

    def finish(self, sequences: Iterable[OpenSequence]) -> None:
        """A run with requests of these has ended."""
        now_s = self._clock.monotonic_s()
        with self._changed:
            for sequence in sequences:
                self._table.finish(sequence, now_s)
            self._changed.notify_all()

    def _form(self, instance: int, generation: int) -> SequenceBatch:
        batch = self._former(self._table, instance, self._plan)
        self._pending -= len(batch.taken)
        for _, row in batch.taken:
            row.sequence.generation = generation
        return batch

    def _wait_s(self, waiting: list[OpenSequence], now_s: float) -> float | None:
        """How much longer to wait for more requests; None: run now."""
        config, most = self._plan.config, self._plan.most_rows
        if self._plan.alone:
            return None
        if config.oldest:
            wanted = max(config.preferred_batch_sizes, default=most)
            enough = len(waiting) >= wanted or len(waiting) in config.preferred_batch_sizes
        else:
            share = config.minimum_slot_utilization
            enough = share == 0 or len(waiting) / most >= share
        oldest_s = min(sequence.queue[0].arrived_s for sequence in waiting)
        left_s = oldest_s + config.max_queue_delay_us / 1e6 - now_s
        return None if enough or self._closed or left_s <= 0 else left_s

    def _until(self, wait_s: float | None, now_s: float) -> float | None:
        """Longest wait: until a batch is due, or a slot becomes free that somebody waits for."""
        if self._closed or self._table.backlog:
            idle_s = self._table.next_idle_s()
            if idle_s is not None:
                wait_s = idle_s - now_s if wait_s is None else min(idle_s - now_s, wait_s)
        return None if wait_s is None else max(wait_s, 0.0)

    def _end_overdue(self, instance: int, generation: int, now_s: float) -> None:
        self._end_idle(now_s)
        if self._closed and not self._has_successor:
            for sequence in self._table.resting():
                self._table.end(sequence)
        if now_s >= self._first_late_s:
            self._end_late(now_s)
        for sequence in self._table.seated(instance):
            begins = bool(sequence.queue) and sequence.queue[0].step.start
            if sequence.generation not in (None, generation) and not begins:
                self._end(sequence, not_started(sequence.id, self._model))

    def _end_late(self, now_s: float) -> None:
        self._first_late_s = math.inf
        for sequence in list(self._table.sequences()):
            late = next((queued for queued in sequence.queue if queued.late_s <= now_s), None)
            if late is None:
                self._first_late_s = min([self._first_late_s, *(queued.late_s for queued in sequence.queue)])
                continue
            if late.request.deadline_s is not None and now_s >= late.request.deadline_s:
                late.answer(DeadlineError(f"the deadline passed while the request waited for model '{self._model}'"))
            if sequence.place is None:  # in the backlog, a sequence is refused whole
                self._end(sequence, UnavailableError(EXPIRED))
            else:
                self._give_up(sequence, self._table.end_before(sequence, late), UnavailableError(EXPIRED))

    def _end_idle(self, now_s: float) -> None:
        if now_s < self._first_idle_s:
            return
        for sequence in self._table.idle(now_s):
            _log.info("sequence.idle model=%s sequence=%r", self._model, sequence.id)
            self._table.end(sequence)
            self._changed.notify_all()  # its slot may be another instance's, and wanted
        idle_s = self._table.next_idle_s()
        soonest_s = now_s + self._table.max_idle_s  # of those that have a request now
        self._first_idle_s = soonest_s if idle_s is None else min(idle_s, soonest_s)

    def _end(self, sequence: OpenSequence, why: DovetailError) -> None:
        self._give_up(sequence, self._table.end(sequence), why)

    def _give_up(self, sequence: OpenSequence, left: list[QueuedStep], why: DovetailError) -> None:
        """Answer the requests of a sequence that was ended before its time."""
        _log.info("sequence.ended model=%s sequence=%r why=%r", self._model, sequence.id, str(why))
        self._pending -= len(left)
        for queued in left:
            queued.answer(why)
        self._changed.notify_all()
