# SPDX-License-Identifier: Apache-2.0
"""Requests of sequences with any number of replies: run one at a time, each reply handed over as soon as it is there.

The sequence's next request starts when the caller has taken the last reply of this one, so that they cannot overtake
each other; with `preserve_ordering`, so does that of any other sequence of the instance. A caller who leaves while the
model replies ends the sequence: the model stopped somewhere in the middle, so what follows could not be right. Which
request runs when is `queue`'s business.

Source: Triton Inference Server, decoupled backends and models; sequence batcher.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import cast

from dovetail.engines.base import Session
from dovetail.errors import CancelledError, DovetailError, EngineError
from dovetail.tensor import Array
from runtime_svc.scheduling.call_context import expectation_of
from runtime_svc.scheduling.decoupled.session import DecoupledSession
from runtime_svc.scheduling.reply_buffer import CallerGoneError
from runtime_svc.scheduling.sequences.batch import Row, SequenceBatch
from runtime_svc.scheduling.sequences.queue import SequenceQueue
from runtime_svc.scheduling.sequences.table import QueuedStep
from runtime_svc.statistics import Execution

_log = logging.getLogger(__name__)


class DecoupledSteps:
    """Runs such requests on one session. `run` belongs to its thread, `leave` to the event loop.

    Args:
        session: Of a decoupled model.
        queue: Told when a sequence may go on, or is over before its time.
        model: Name, for messages.
        record: Takes each run that succeeded.
    """

    def __init__(
        self,
        session: Session,
        queue: SequenceQueue,
        *,
        model: str,
        record: Callable[[Execution], None],
    ) -> None:
        self._session = cast(DecoupledSession, session)
        self._model = model
        self._record = record
        self._queue = queue
        self._expect = expectation_of(session)
        self._lock = threading.Lock()
        self._running: QueuedStep | None = None

    def run(self, batch: SequenceBatch, generation_now: Callable[[], int]) -> None:
        """Run the one request of a batch and hand its replies over."""
        ((_, row),) = batch.taken
        started_ns = time.perf_counter_ns()
        taken = threading.Event()

        def go_on() -> None:
            self._queue.finish([row.sequence])
            taken.set()

        row.queued.replies.on_end = go_on
        with self._lock:
            self._running = row.queued
        fault: DovetailError | None = None
        try:
            self._execute(batch, row, generation_now)
        except CallerGoneError:
            _log.debug("decoupled.caller_gone model=%s sequence=%r", self._model, row.sequence.id)
            why = f"sequence {row.sequence.id} of model '{self._model}' was ended: one of its requests was cancelled"
            self._queue.give_up(row.sequence, CancelledError(why))
        except DovetailError as error:
            fault = error
        except Exception:
            # The thread must outlive whatever a library throws, else the model would hang for good.
            _log.exception("engine.unexpected_error model=%s", self._model)
            fault = EngineError("the engine failed in a way it does not document; the log has the details")
        with self._lock:
            self._running = None
        if fault is None and not row.queued.replies.abandoned:
            waited_ns = started_ns - row.queued.enqueued_ns
            self._record(Execution(1, [waited_ns], 0, time.perf_counter_ns() - started_ns, 0))
        row.queued.replies.finish(fault)
        if batch.plan.config.preserve_ordering:
            taken.wait()

    def leave(self, queued: QueuedStep) -> None:
        """Nobody reads the replies to this request any more: have the model told if it runs."""
        with self._lock:
            cancel = getattr(self._session, "cancel", None)
            if self._running is queued and cancel is not None:
                cancel()  # while it is known to be the session's present run

    def _execute(self, batch: SequenceBatch, row: Row, generation_now: Callable[[], int]) -> None:
        def check() -> None:
            if row.sequence.generation != generation_now() and not row.queued.step.start:
                raise EngineError(f"model '{self._model}' was started again and has lost its sequences")

        def emit(reply: Mapping[str, Array]) -> None:
            check()
            row.queued.replies.put(batch.keep_states(row, reply))

        if self._expect is not None:
            self._expect(batch.contexts())
        self._session.run_decoupled(batch.gather(), emit)
        check()
