# SPDX-License-Identifier: Apache-2.0
"""One engine session and the one thread that runs it.

Inference is native code that may take long and holds its session for itself, so it never runs on the event loop: each
instance has a thread that takes batches, runs them and hands the results back to the loop. While there are none, it
does spare work, which no caller sees and nothing counts. Queueing is `dispatch`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from dovetail.engines.base import Session
from dovetail.errors import CancelledError, DovetailError, EngineError
from dovetail.tensor import Array
from runtime_svc.scheduling.base import SchedulerParts
from runtime_svc.scheduling.batch import Batch
from runtime_svc.scheduling.call_context import CallContext, expectation_of
from runtime_svc.scheduling.closing import CloseReason
from runtime_svc.scheduling.dispatch import Dispatcher, Turn
from runtime_svc.scheduling.gathering import Gatherer
from runtime_svc.scheduling.stopping import WORTH_STOPPING_S, run_while_wanted, stoppable_of
from runtime_svc.scheduling.ticket import deliver
from runtime_svc.statistics import Execution, Refusal

_log = logging.getLogger(__name__)


class Instance:
    """Runs batches until its dispatcher is closed and empty.

    Args:
        session: Used by this instance's thread only, unless the session says that it is concurrent.
        dispatcher: Where batches come from; several instances may share one.
        parts: What the scheduler is made of.
        turn: Its right to run.
    """

    def __init__(self, session: Session, dispatcher: Dispatcher, parts: SchedulerParts, turn: Turn) -> None:
        self._session = session
        self._expect = expectation_of(session)
        self._stoppable = stoppable_of(session)
        self._dispatcher = dispatcher
        self._record = parts.record
        self._refuse = parts.refuse
        self._buckets = parts.config.buckets
        self._gatherer = Gatherer(parts.config, batched=parts.facts.max_batch_size > 0)
        self._padded = parts.config.allowed_batch_sizes
        self._turn = turn

    def serve(self) -> None:
        """Its thread's work, to the end."""
        while (task := self._dispatcher.take(self._turn)) is not None:
            if isinstance(task, Batch):
                started = time.perf_counter()
                if self._run(task):
                    self._dispatcher.learn(task, time.perf_counter() - started)
                self._turn.ran(time.perf_counter() - started)
                self._dispatcher.judge(task)
            else:
                task.run(self._session)
            del task  # so that its arrays do not live on while the thread waits

    def _run(self, batch: Batch) -> bool:
        """Run a batch and deliver what came of it; False if it failed."""
        try:
            results = self._execute(batch)
        except DovetailError as error:
            if isinstance(error, CancelledError) and batch.abandoned:
                for _ in batch.tickets:
                    self._refuse(Refusal.STOPPED)
                return False
            if len(batch.tickets) == 1:
                deliver(batch.tickets, [error])
                return False
            # One request's values may have broken the run (an index out of range): its neighbours must not pay for it.
            _log.warning("batch.split requests=%d rows=%d why=%r", len(batch.tickets), batch.rows, str(error))
            for single in self._singles(batch):
                self._run(single)
            return False
        deliver(batch.tickets, results)
        return True

    def _singles(self, batch: Batch) -> list[Batch]:
        """One batch for each request."""
        return [
            Batch((ticket,), rows, next((size for size in self._padded if size >= rows), rows), CloseReason.ALONE)
            for ticket, rows in ((ticket, ticket.request.rows) for ticket in batch.tickets)
        ]

    def _execute(self, batch: Batch) -> list[dict[str, Array]]:
        started_ns = time.perf_counter_ns()
        try:
            feeds = self._gatherer.gather(batch.tickets, batch.rows, batch.padded_rows)
            gathered_ns = time.perf_counter_ns()
            outputs = self._session_run(batch, feeds)
            inferred_ns = time.perf_counter_ns()
            self._gatherer.settle(outputs)
            parts = batch.scatter(outputs, self._buckets)
        except DovetailError:
            raise
        except Exception as exc:
            # The thread must outlive whatever a native library throws, else the model would hang for good.
            _log.exception("engine.unexpected_error requests=%d rows=%d", len(batch.tickets), batch.rows)
            raise EngineError("the engine failed in a way it does not document; the log has the details") from exc
        for ticket in batch.tickets:
            ticket.started_ns = started_ns
        self._record(
            Execution(
                rows=batch.rows,
                queue_ns=[
                    started_ns - ticket.enqueued_ns
                    for ticket in batch.tickets
                    if not ticket.part and not ticket.future.cancelled()
                ],
                input_ns=gathered_ns - started_ns,
                infer_ns=inferred_ns - gathered_ns,
                output_ns=time.perf_counter_ns() - inferred_ns,
                padding=batch.padded_rows - batch.rows,
                closed_by=batch.reason,
            )
        )
        return parts

    def _session_run(self, batch: Batch, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        if self._expect is not None:
            callers = [CallContext.of(ticket.request) for ticket in batch.tickets]
            if batch.padded_rows > batch.rows:
                callers.append(CallContext(batch.padded_rows - batch.rows, ready=False))
            self._expect(callers)
        short = self._expect is None and batch.expected_s is not None and batch.expected_s < WORTH_STOPPING_S
        if self._stoppable is None or short:
            return self._session.run(feeds)
        return run_while_wanted(self._stoppable(), batch, feeds)
