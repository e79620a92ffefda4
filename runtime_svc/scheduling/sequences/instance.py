# SPDX-License-Identifier: Apache-2.0
"""One engine session of a sequence model and the one thread that runs it.

Queueing and the ends of sequences are `queue`'s; what goes into a run and comes out of it, `batch`'s.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from dovetail.engines.base import Session
from dovetail.errors import DovetailError, EngineError
from dovetail.tensor import Array
from runtime_svc.scheduling.call_context import expectation_of
from runtime_svc.scheduling.sequences.batch import SequenceBatch
from runtime_svc.scheduling.sequences.decoupled import DecoupledSteps
from runtime_svc.scheduling.sequences.queue import SequenceQueue
from runtime_svc.scheduling.sequences.table import QueuedStep
from runtime_svc.scheduling.ticket import settle
from runtime_svc.spare_time import SpareWork
from runtime_svc.statistics import Execution

_log = logging.getLogger(__name__)


class SequenceInstance:
    """Runs what its queue gives until that is closed and all sequences are over.

    Args:
        number: Of the instance in the queue.
        session: Used by this instance's thread only.
        queue: Shared with the other instances.
        model: Name, for logs.
        record: Takes each run that succeeded.
        alone: Requests run alone, because they may have any number of replies.
    """

    def __init__(
        self,
        number: int,
        session: Session,
        queue: SequenceQueue,
        *,
        model: str,
        record: Callable[[Execution], None],
        alone: bool = False,
    ) -> None:
        self._number = number
        self._session = session
        self._queue = queue
        self._model = model
        self._record = record
        self._expect = expectation_of(session)
        self._alone = DecoupledSteps(session, queue, model=model, record=record) if alone else None
        self._running: tuple[SequenceBatch | None, int | None] = (None, None)

    def serve(self) -> None:
        """Its thread's work, to the end."""
        while (task := self._queue.take(self._number, self._generation)) is not None:
            if isinstance(task, SpareWork):
                task.run(self._session)
            elif self._alone is not None:
                self._alone.run(task, self._generation)
            else:
                self._run(task)
            del task  # so that its arrays do not live on while the thread waits

    def leave(self, queued: QueuedStep) -> None:
        """Nobody waits for this request any more; any thread. The model is told if it runs and can be told."""
        if self._alone is not None:
            self._alone.leave(queued)
            return
        batch, number = self._running
        place = None if batch is None else batch.place_of(queued)
        if place is not None and number is not None:
            self._session.cancel(place, number)  # type: ignore[attr-defined]  # means nothing if it is over by now

    def _run(self, batch: SequenceBatch) -> None:
        taken = batch.taken
        results: list[Mapping[str, Array] | DovetailError]
        try:
            results = [*self._execute(batch)]
        except DovetailError as error:
            results = self._run_apart(batch, error)
        self._queue.finish(row.sequence for _, row in taken)

        def resolve_all() -> None:
            for (_, row), result in zip(taken, results, strict=True):
                settle(row.queued.future, result)

        taken[0][1].queued.future.get_loop().call_soon_threadsafe(resolve_all)

    def _run_apart(self, batch: SequenceBatch, error: DovetailError) -> list[Mapping[str, Array] | DovetailError]:
        """After a run that failed: each request alone, if all state is with us and so is as it was before."""
        taken = batch.taken
        if len(taken) == 1 or not batch.plan.first_states:
            return [error] * len(taken)
        _log.warning("batch.split model=%s requests=%d why=%r", self._model, len(taken), str(error))
        results: list[Mapping[str, Array] | DovetailError] = []
        for place, _ in taken:
            try:
                results += self._execute(batch.only(place))
            except DovetailError as own:
                results.append(own)
        return results

    def _execute(self, batch: SequenceBatch) -> list[dict[str, Array]]:
        taken = batch.taken
        started_ns = time.perf_counter_ns()
        feeds = batch.gather()
        gathered_ns = time.perf_counter_ns()
        outputs = self._infer(batch, feeds)
        if any(row.sequence.generation != self._generation() and not row.queued.step.start for _, row in taken):
            raise EngineError(f"model '{self._model}' was started again and has lost its sequences")
        inferred_ns = time.perf_counter_ns()
        parts = batch.scatter(outputs)
        self._record(
            Execution(
                rows=len(taken),
                queue_ns=[started_ns - row.queued.enqueued_ns for _, row in taken],
                input_ns=gathered_ns - started_ns,
                infer_ns=inferred_ns - gathered_ns,
                output_ns=time.perf_counter_ns() - inferred_ns,
            )
        )
        return parts

    def _infer(self, batch: SequenceBatch, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        if self._expect is not None:
            self._running = (batch, self._expect(batch.contexts()))
            for _, row in batch.taken:
                if row.queued.future.cancelled():  # before anybody listened
                    self.leave(row.queued)
        try:
            return self._session.run(feeds)
        except DovetailError:
            raise
        except Exception as exc:
            # The thread must outlive whatever a native library throws, else the model would hang for good.
            _log.exception("engine.unexpected_error model=%s requests=%d", self._model, len(batch.taken))
            raise EngineError("the engine failed in a way it does not document; the log has the details") from exc
        finally:
            self._running = (None, None)

    def _generation(self) -> int:
        """Which start of the session's process this is; 0 for sessions that are never started again."""
        return int(getattr(self._session, "generation", 0))
