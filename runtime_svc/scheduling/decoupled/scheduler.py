# SPDX-License-Identifier: Apache-2.0
"""The scheduler of decoupled models: a request has any number of replies, also none, and runs alone on an instance.

Its replies go through a buffer of a few places: when that is full the model waits, so a slow reader holds back the
model and not the node's memory. A caller who leaves is noticed by the model at its next reply, or before if its session
can be told (`cancel`).

Source: Triton Inference Server, decoupled backends and models.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from typing import cast

from dovetail.engines.base import Session
from dovetail.errors import DovetailError, EngineError, InvalidInputError
from dovetail.tensor import Array
from runtime_svc.scheduling.base import SchedulerParts
from runtime_svc.scheduling.call_context import CallContext, expectation_of
from runtime_svc.scheduling.decoupled.queue import DecoupledQueue, OpenRequest
from runtime_svc.scheduling.decoupled.session import DecoupledSession, check_decoupled
from runtime_svc.scheduling.engine_queue import MAX_WAITING
from runtime_svc.scheduling.reply_buffer import CallerGoneError, only_reply
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.scheduling.threaded import ThreadedScheduler
from runtime_svc.spare_time import SpareWork
from runtime_svc.statistics import Execution

_log = logging.getLogger(__name__)


class DecoupledScheduler(ThreadedScheduler):
    """See `Scheduler`.

    Args:
        parts: See SchedulerParts; each session is decoupled.

    Raises:
        UnsupportedError: A session gives one reply only.
    """

    _queue: DecoupledQueue

    def __init__(self, parts: SchedulerParts) -> None:
        check_decoupled(parts)
        self._parts = parts
        self._model = parts.facts.name
        queue = DecoupledQueue(self._model, parts.clock, parts.config.max_queue_rows or MAX_WAITING)
        super().__init__(parts, queue, [partial(self._serve, session) for session in parts.sessions])

    async def infer(self, request: InferenceRequest) -> Mapping[str, Array]:
        """The reply of a request that has exactly one.

        Raises:
            UnsupportedError: It had none or several.
        """
        return await only_reply(self.responses(request), self._model)

    async def responses(self, request: InferenceRequest) -> AsyncGenerator[Mapping[str, Array], None]:
        """All replies, each as soon as the model gives it; see `Scheduler`."""
        self._check_rows(request.rows)
        opened = self._queue.add(request)
        try:
            while (reply := await opened.replies.get()) is not None:
                yield reply
        finally:
            if opened.replies.abandon():
                self._queue.leave(opened)

    def _check_rows(self, rows: int) -> None:
        most_rows = self._parts.facts.max_batch_size
        if most_rows and not 1 <= rows <= most_rows:
            bound = f"<= {most_rows}" if rows > most_rows else ">= 1"
            raise InvalidInputError(f"inference request batch-size must be {bound} for '{self._model}'")

    def _serve(self, session: Session) -> None:
        while (task := self._queue.take(session)) is not None:
            if isinstance(task, SpareWork):
                task.run(session)
            else:
                self._run(cast(DecoupledSession, session), task)
            del task  # so that its arrays do not live on while the thread waits

    def _run(self, session: DecoupledSession, opened: OpenRequest) -> None:
        started_ns = time.perf_counter_ns()
        fault: DovetailError | None = None
        try:
            expect = expectation_of(session)
            if expect is not None:
                expect([CallContext.of(opened.request)])
            session.run_decoupled(opened.request.feeds, opened.replies.put)
        except CallerGoneError:
            _log.debug("decoupled.caller_gone model=%s", self._model)
        except DovetailError as error:
            fault = error
        except Exception:
            # The thread must outlive whatever a library throws, else the model would hang for good.
            _log.exception("engine.unexpected_error model=%s", self._model)
            fault = EngineError("the engine failed in a way it does not document; the log has the details")
        self._queue.finish(opened)
        if fault is None and not opened.replies.abandoned:
            self._record(opened, started_ns)
        opened.replies.finish(fault)

    def _record(self, opened: OpenRequest, started_ns: int) -> None:
        self._parts.record(
            Execution(
                rows=opened.request.rows,
                queue_ns=[started_ns - opened.enqueued_ns],
                input_ns=0,
                infer_ns=time.perf_counter_ns() - started_ns,
                output_ns=0,
            )
        )


def start_decoupled(parts: SchedulerParts) -> DecoupledScheduler:
    """A running decoupled scheduler."""
    scheduler = DecoupledScheduler(parts)
    scheduler.start()
    return scheduler
