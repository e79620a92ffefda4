# SPDX-License-Identifier: Apache-2.0
"""The scheduler of decoupled models: a request has any number of replies, also none, and runs alone on an instance.

Each instance takes the oldest request that still has a caller. Its replies go through a buffer of a few places: when
that is full the model waits, so a slow reader holds back the model and not the node's memory. A caller who leaves is
noticed by the model at its next reply, or before if its session can be told (`cancel`).

Source: Triton Inference Server, decoupled backends and models.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, Protocol, cast

from dovetail.engines.base import Session
from dovetail.errors import (
    DeadlineError,
    DovetailError,
    EngineError,
    InvalidInputError,
    UnavailableError,
    UnsupportedError,
)
from dovetail.tensor import Array
from runtime_svc.scheduling.base import SchedulerParts
from runtime_svc.scheduling.call_context import CallContext, expectation_of
from runtime_svc.scheduling.reply_buffer import CallerGoneError, ReplyBuffer
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.spare_time import SpareQueue, SpareWork
from runtime_svc.statistics import Execution

_log = logging.getLogger(__name__)

MAX_WAITING = 4096
"""Most requests that wait, unless the configuration says otherwise."""


class DecoupledSession(Session, Protocol):
    """A session whose runs give any number of replies."""

    decoupled: bool

    def run_decoupled(self, feeds: Mapping[str, Array], emit: Callable[[Mapping[str, Array]], None]) -> None:
        """Run once.

        Args:
            feeds: As for `run`.
            emit: Takes a reply; blocks while nobody reads, and raises when the caller is gone.
        """
        ...


class _Ticket:
    """A request in the queue and where its replies go."""

    def __init__(self, request: InferenceRequest, expires_s: float | None) -> None:
        self.request = request
        self.expires_s = expires_s
        self.replies = ReplyBuffer()
        self.enqueued_ns = time.perf_counter_ns()


class DecoupledScheduler:
    """See `Scheduler`.

    Args:
        parts: See SchedulerParts; each session is decoupled.

    Raises:
        UnsupportedError: A session gives one reply only.
    """

    def __init__(self, parts: SchedulerParts) -> None:
        check_decoupled(parts)
        self._parts = parts
        self._model = parts.facts.name
        self._most = parts.config.max_queue_rows or MAX_WAITING
        self._changed = threading.Condition()
        self._queue: deque[_Ticket] = deque()
        self._running: dict[_Ticket, Session] = {}
        self._spare = SpareQueue()
        self._closed = False
        self._threads = [
            threading.Thread(
                target=self._serve, args=(session,), name=f"{self._model}-{parts.facts.version}-{index}", daemon=True
            )
            for index, session in enumerate(parts.sessions)
        ]

    @property
    def pending(self) -> int:
        """Requests that wait for an instance."""
        return len(self._queue)

    @property
    def instances(self) -> int:
        """Engine instances, each with its thread."""
        return len(self._threads)

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    async def infer(self, request: InferenceRequest) -> Mapping[str, Array]:
        """The reply of a request that has exactly one.

        Raises:
            UnsupportedError: It had none or several.
        """
        return await only_reply(self.responses(request), self._model)

    async def responses(self, request: InferenceRequest) -> AsyncGenerator[Mapping[str, Array], None]:
        """All replies, each as soon as the model gives it; see `Scheduler`."""
        ticket = self._enqueue(request)
        try:
            while (reply := await ticket.replies.get()) is not None:
                yield reply
        finally:
            self._leave(ticket)

    def offer_spare(self, work: SpareWork[Any]) -> None:
        """See `Scheduler`."""
        with self._changed:
            self._spare.offer(work)
            self._changed.notify()

    async def close(self) -> None:
        """See `Scheduler`."""
        with self._changed:
            self._closed = True
            self._spare.close()
            self._changed.notify_all()
        await asyncio.to_thread(self._release)

    def _release(self) -> None:
        for thread in self._threads:
            thread.join()
        for session in {id(session): session for session in self._parts.sessions}.values():
            session.close()

    def _enqueue(self, request: InferenceRequest) -> _Ticket:
        most_rows = self._parts.facts.max_batch_size
        if most_rows and not 1 <= request.rows <= most_rows:
            bound = f"<= {most_rows}" if request.rows > most_rows else ">= 1"
            raise InvalidInputError(f"inference request batch-size must be {bound} for '{self._model}'")
        now_s = self._parts.clock.monotonic_s()
        ticket = _Ticket(request, now_s + request.timeout_us / 1e6 if request.timeout_us else None)
        with self._changed:
            if self._closed:
                raise UnavailableError(f"model '{self._model}' is being unloaded")
            if len(self._queue) >= self._most:
                raise UnavailableError("Exceeds maximum queue size")
            self._queue.append(ticket)
            self._changed.notify()
        return ticket

    def _leave(self, ticket: _Ticket) -> None:
        """Nobody reads any more: take the request out of the queue, or have the model told."""
        if not ticket.replies.abandon():
            return
        with self._changed:
            if ticket in self._queue:
                self._queue.remove(ticket)
            session = self._running.get(ticket)
            cancel = getattr(session, "cancel", None)
            if cancel is not None:
                cancel()  # while the ticket is known to be the session's present run

    def _serve(self, session: Session) -> None:
        while (task := self._take(session)) is not None:
            if isinstance(task, SpareWork):
                task.run(session)
            else:
                self._run(cast(DecoupledSession, session), task)
            del task  # so that its arrays do not live on while the thread waits

    def _take(self, session: Session) -> _Ticket | SpareWork[Any] | None:
        with self._changed:
            while True:
                while self._queue:
                    ticket = self._queue.popleft()
                    fault = self._reason_to_drop(ticket)
                    if fault is None:
                        self._running[ticket] = session
                        return ticket
                    ticket.replies.finish(fault)
                if self._closed:
                    return None
                if self._spare:
                    return self._spare.take()
                self._changed.wait()

    def _reason_to_drop(self, ticket: _Ticket) -> DovetailError | None:
        now_s = self._parts.clock.monotonic_s()
        if ticket.request.deadline_s is not None and now_s >= ticket.request.deadline_s:
            return DeadlineError(f"the deadline passed while the request waited for model '{self._model}'")
        if ticket.expires_s is not None and now_s >= ticket.expires_s:
            return UnavailableError("Request timeout expired")
        return None

    def _run(self, session: DecoupledSession, ticket: _Ticket) -> None:
        started_ns = time.perf_counter_ns()
        fault: DovetailError | None = None
        try:
            expect = expectation_of(session)
            if expect is not None:
                expect([CallContext.of(ticket.request)])
            session.run_decoupled(ticket.request.feeds, ticket.replies.put)
        except CallerGoneError:
            _log.debug("decoupled.caller_gone model=%s", self._model)
        except DovetailError as error:
            fault = error
        except Exception:
            # The thread must outlive whatever a library throws, else the model would hang for good.
            _log.exception("engine.unexpected_error model=%s", self._model)
            fault = EngineError("the engine failed in a way it does not document; the log has the details")
        with self._changed:
            del self._running[ticket]
        if fault is None and not ticket.replies.abandoned:
            self._record(ticket, started_ns)
        ticket.replies.finish(fault)

    def _record(self, ticket: _Ticket, started_ns: int) -> None:
        self._parts.record(
            Execution(
                rows=ticket.request.rows,
                queue_ns=[started_ns - ticket.enqueued_ns],
                input_ns=0,
                infer_ns=time.perf_counter_ns() - started_ns,
                output_ns=0,
            )
        )


def check_decoupled(parts: SchedulerParts) -> None:
    """See that the sessions of a model that is configured as decoupled can give any number of replies.

    Raises:
        UnsupportedError: A session gives one reply only.
    """
    for session in parts.sessions:
        if not getattr(session, "decoupled", False):
            raise UnsupportedError(
                f"model '{parts.facts.name}' is configured as decoupled, but engine '{parts.facts.engine}' gives"
                " one reply to each request"
            )


async def only_reply(responses: AsyncGenerator[Mapping[str, Array], None], model: str) -> Mapping[str, Array]:
    """The reply of a request that has exactly one; the others are not read.

    Raises:
        UnsupportedError: It had none or several.
    """
    replies = []
    async with aclosing(responses):
        async for reply in responses:
            replies.append(reply)
            if len(replies) > 1:
                break
    if len(replies) != 1:
        raise UnsupportedError(
            f"model '{model}' is decoupled and gave {'no' if not replies else 'more than one'} reply where"
            " one is needed; ask for its replies over a stream"
        )
    return replies[0]


def start_decoupled(parts: SchedulerParts) -> DecoupledScheduler:
    """A running decoupled scheduler."""
    scheduler = DecoupledScheduler(parts)
    scheduler.start()
    return scheduler
