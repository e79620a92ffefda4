# SPDX-License-Identifier: Apache-2.0
"""Between the event loop, which brings requests, and engine threads, which take batches: the queue and its lock.

A request whose caller is gone, or whose time is over, leaves the queue without costing an execution. What a batch is,
`closing` says; who waits, `queue`; who gets the processor, `fairness`.

Source: Triton Inference Server, dynamic batcher (scan in the order of service, stop at the first request that does not
fit). The queue's bounds count rows and bytes, because those cost time and memory, and only what is in the queue.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dovetail.errors import BusyError, DeadlineError, UnavailableError
from runtime_svc.scheduling.admission import ENOUGH_RUNS, Prudence, check_deadline, find_late, predicted_wait_s
from runtime_svc.scheduling.base import SchedulerParts
from runtime_svc.scheduling.batch import Batch
from runtime_svc.scheduling.closing import Closer, CloseReason
from runtime_svc.scheduling.engine_queue import EngineQueue
from runtime_svc.scheduling.fairness import Gate, Place, Share
from runtime_svc.scheduling.policy import Levels
from runtime_svc.scheduling.queue import DEFAULT_QUEUE_BYTES, DEFAULT_QUEUE_ROWS, RequestQueue
from runtime_svc.scheduling.run_times import Curve, RunTimes
from runtime_svc.scheduling.ticket import Ticket, deliver
from runtime_svc.spare_time import SpareWork
from runtime_svc.statistics import Refusal


class Turn:
    """One engine instance's right to run, as the gate gives it. Belongs to the instance's thread."""

    def __init__(self, gate: Gate | None, share: Share | None) -> None:
        self._gate = gate
        self._share = share
        self._held = False
        self._ran_s: float | None = None
        self._place: Place | None = None

    def take(self) -> bool:
        """Get it, or keep it after a run, if that needs no wait."""
        if self._gate is None or self._share is None:
            return True
        if self._ran_s is not None:
            ran_s, self._ran_s = self._ran_s, None
            self._place = self._gate.go_on(self._share, ran_s)
            self._held = self._place is None
        elif not self._held:
            self._held = self._gate.try_enter(self._share)
        return self._held

    def wait(self) -> None:
        """Get it; blocks."""
        if self._gate is not None and self._share is not None:
            if self._place is None:
                self._gate.enter(self._share)
            else:
                self._gate.wait(self._place)
            self._held, self._place = True, None

    def ran(self, seconds: float) -> None:
        """A run that took so long is over; `take` or `give_back` follows, as there is more to run or not."""
        if self._held:
            self._ran_s = seconds

    def give_back(self) -> None:
        """Let others run."""
        if self._held and self._gate is not None and self._share is not None:
            ran_s, self._ran_s, self._held = self._ran_s or 0.0, None, False
            self._gate.leave(self._share, ran_s)


class Dispatcher(EngineQueue):
    """The queue of one served model.

    `submit` and `withdraw` belong to the event loop, `take` and `learn` to engine threads; the rest may be used from
    anywhere.

    Args:
        parts: What the scheduler is made of.
        instances: Engine instances that take batches.
    """

    def __init__(self, parts: SchedulerParts, instances: int) -> None:
        super().__init__()
        facts, config = parts.facts, parts.config
        batching = config.batching
        self._model = facts.name
        self._limit = facts.max_batch_size
        self._instances = instances
        self._clock = parts.clock
        self._refuse = parts.refuse
        self._levels = Levels.of(batching)
        self._closer = Closer(
            max(1, self._limit),
            delay_s=batching.max_queue_delay_us / 1e6 if batching and self._limit else 0.0,
            preferred=batching.preferred_batch_sizes if batching else (),
            allowed=config.allowed_batch_sizes,
        )
        self._queue = RequestQueue(
            facts.name,
            self._levels,
            max_rows=config.max_queue_rows or DEFAULT_QUEUE_ROWS,
            max_bytes=config.max_queue_bytes or DEFAULT_QUEUE_BYTES,
        )
        self._times = RunTimes()
        self._prudence = Prudence()
        self._idle = 0

    @property
    def pending(self) -> int:
        """Requests that wait for a batch."""
        return len(self._queue)

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Queue one request, which may be in several parts: all of them, or none.

        Raises:
            UnavailableError: The queue is full (a BusyError), or the model is being closed.
            DeadlineError: Its deadline passed, or will before it could be answered.
        """
        request = tickets[0].request
        level = self._levels.index(request.priority)
        now_s = self._clock.monotonic_s()
        wait_us = self._levels.wait_us(level, request.timeout_us)
        expires_s = now_s + wait_us / 1e6 if wait_us else None
        with self._changed:
            if self._closed:
                raise UnavailableError(f"model '{self._model}' is being unloaded")
            self._drop_expired(now_s)
            self._admit(tickets, level, now_s)
            for ticket in tickets:
                ticket.level, ticket.enqueued_s, ticket.expires_s = level, now_s, expires_s
                self._queue.add(ticket)
            self._changed.notify(len(tickets))

    def withdraw(self, ticket: Ticket) -> None:
        """Take back a request whose caller is gone; the run of one that is not queued any more is told."""
        with self._changed:
            queued = self._queue.remove(ticket)
        if queued:
            self._refuse(Refusal.CANCELLED)
        elif (on_leave := ticket.on_leave) is not None:
            on_leave()

    def take(self, turn: Turn) -> Batch | SpareWork[Any] | None:
        """The next batch, else spare work; blocks while there is neither. None once closed and the queue is empty.

        Args:
            turn: Of the instance; held when a batch is returned.
        """
        while True:
            with self._changed:
                task = self._next(turn)
            if not isinstance(task, Turn):
                return task
            task.wait()

    def learn(self, batch: Batch, seconds: float) -> None:
        """A run of a batch took so long."""
        with self._changed:
            self._times.add(batch.tickets[0].layout, batch.padded_rows, seconds)

    def judge(self, batch: Batch) -> None:
        """The run of a batch ended, or was stopped because nobody waited for it any more."""
        deadlines_s = [at_s for ticket in batch.tickets if (at_s := ticket.request.deadline_s) is not None]
        if deadlines_s:
            with self._changed:
                curve = self._times.of(batch.tickets[0].layout)
                if curve is not None and curve.runs > ENOUGH_RUNS:  # before, nobody could be prudent
                    self._prudence.learn(min(deadlines_s) - self._clock.monotonic_s())

    def _next(self, turn: Turn) -> Batch | SpareWork[Any] | Turn | None:
        """Under the lock: what to do, the turn itself if that has to be waited for first."""
        while True:
            wait_s: float | None = None
            if self._queue:
                if not turn.take():
                    return turn
                found = self._collect()
                if isinstance(found, Batch):
                    return found
                wait_s = found
            turn.give_back()
            if wait_s is None:
                if self._closed:
                    return None
                if self._spare:
                    return self._spare.take()
            self._idle += 1
            self._changed.wait(wait_s)
            self._idle -= 1

    def _admit(self, tickets: Sequence[Ticket], level: int, now_s: float) -> None:
        request = tickets[0].request
        rows = sum(ticket.request.rows for ticket in tickets)
        try:
            self._queue.check_room(level, 1, rows, sum(ticket.size_bytes for ticket in tickets))
        except BusyError as error:
            self._refuse(Refusal.QUEUE_FULL)
            error.retry_after_s = self._backlog_s() or error.retry_after_s
            raise
        if request.deadline_s is None:
            return
        remaining_s = request.deadline_s - now_s
        if remaining_s <= 0:
            self._refuse(Refusal.DEADLINE)
            raise DeadlineError(f"the deadline had passed when the request came to model '{self._model}'")
        if not self._queue:
            return
        try:
            check_deadline(
                self._model,
                self._times,
                tickets[0].layout,
                rows=rows,
                rows_before=self._queue.rows_before(level),
                remaining_s=remaining_s,
                limit=self._limit,
                instances=self._instances,
            )
        except DeadlineError:
            self._refuse(Refusal.PREDICTED)
            raise

    def _backlog_s(self) -> float:
        return predicted_wait_s(self._times, self._queue.rows, limit=self._limit, instances=self._instances)

    def _drop_expired(self, now_s: float) -> None:
        for ticket, error in self._queue.expire(now_s):
            self._refuse(Refusal.DEADLINE if isinstance(error, DeadlineError) else Refusal.TIMEOUT)
            deliver([ticket], [error])

    def _collect(self) -> Batch | float | None:
        """A batch; else how long to wait for more requests, None if there is none at all."""
        now_s = self._clock.monotonic_s()
        self._drop_expired(now_s)
        taken: list[Ticket] | None = None
        while taken is None:
            tickets, stop, oldest_s = self._scan()
            if not tickets:
                return None
            curve = self._times.of(tickets[0].layout)
            closing = self._closer.close(
                [ticket.request.rows for ticket in tickets],
                stop,
                now_s - oldest_s,
                curve=curve,
                idle=self._idle,
                draining=self._closed,
            )
            if not closing.count:
                return min(closing.wait_s, self._queue.next_instant_s() - now_s)
            taken = self._without_late(tickets[: closing.count], curve, now_s)
        for ticket in taken:
            self._queue.remove(ticket)
        rows = sum(ticket.request.rows for ticket in taken)
        if self._queue and self._idle:
            self._changed.notify()
        padded_rows = self._closer.padded(rows)
        expected_s = curve.seconds(padded_rows) if curve is not None and curve.known else None
        return Batch(tuple(taken), rows, padded_rows, closing.reason, expected_s)

    def _without_late(self, tickets: list[Ticket], curve: Curve | None, now_s: float) -> list[Ticket] | None:
        """Those of a batch to run now; None if some were refused because others can still be answered in time."""
        if curve is None or curve.runs < ENOUGH_RUNS or all(ticket.request.deadline_s is None for ticket in tickets):
            return tickets
        deadlines_s = [math.inf if (at_s := ticket.request.deadline_s) is None else at_s for ticket in tickets]
        count, late = find_late(
            [deadline_s - now_s for deadline_s in deadlines_s],
            [ticket.request.rows for ticket in tickets],
            lambda rows: self._prudence.factor * curve.seconds(self._closer.padded(rows)),
        )
        if not late or len(late) == len(self._queue):
            return tickets[:count]
        for index in late:
            self._queue.remove(tickets[index])
            self._refuse(Refusal.PREDICTED)
            text = f"the request waited for model '{self._model}' until a run would end after its deadline"
            deliver([tickets[index]], [DeadlineError(text)])
        return None

    def _scan(self) -> tuple[list[Ticket], CloseReason, float]:
        """Requests that may share the next batch, why no more of them may, and when the oldest came."""
        tickets: list[Ticket] = []
        gone: list[Ticket] = []
        stop = CloseReason.EMPTY if self._limit else CloseReason.ALONE
        rows, oldest_s = 0, 0.0
        for ticket in self._queue:
            if ticket.future.cancelled():
                gone.append(ticket)
                continue
            if not tickets:
                oldest_s = ticket.enqueued_s
            elif ticket.layout != tickets[0].layout:
                stop = CloseReason.LAYOUT
                break
            elif rows + ticket.request.rows > self._limit:
                stop = CloseReason.FULL if self._limit else CloseReason.ALONE
                break
            tickets.append(ticket)
            rows += ticket.request.rows
            oldest_s = min(oldest_s, ticket.enqueued_s)
        for ticket in gone:  # the loop has not come to take them back yet
            self._queue.remove(ticket)
            self._refuse(Refusal.CANCELLED)
        return tickets, CloseReason.FULL if rows == self._limit else stop, oldest_s
