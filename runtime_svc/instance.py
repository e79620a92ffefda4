# SPDX-License-Identifier: Apache-2.0
"""One engine session and the one thread that runs it.

Inference is native code that may take long and holds its session for itself, so it never runs on the event loop: each
instance has a thread that takes batches, runs them and hands the results back to the loop. While there are none, it
does spare work, which no caller sees and nothing counts. Queueing is `batcher`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from dovetail.engines.base import Session
from dovetail.errors import DovetailError, EngineError
from dovetail.tensor import Array
from runtime_svc.batcher import Batch, Batcher
from runtime_svc.statistics import Execution

_log = logging.getLogger(__name__)


class Instance:
    """Runs batches until its batcher is closed and empty.

    Args:
        session: Used by this instance's thread only, unless the session says that it is concurrent.
        batcher: Where batches come from; several instances may share one.
        name: Of the thread, for debuggers.
        on_executed: Called from the thread after each run that succeeded.
    """

    def __init__(
        self, session: Session, batcher: Batcher, *, name: str, on_executed: Callable[[Execution], None]
    ) -> None:
        self._session = session
        self._batcher = batcher
        self._on_executed = on_executed
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def join(self) -> None:
        """Wait until the thread has ended; blocks, so call it off the event loop."""
        self._thread.join()

    def _serve(self) -> None:
        while (task := self._batcher.take()) is not None:
            if isinstance(task, Batch):
                self._run(task)
            else:
                task.run(self._session)
            del task  # so that its arrays do not live on while the thread waits

    def _run(self, batch: Batch) -> None:
        try:
            results = self._execute(batch)
        except DovetailError as error:
            if len(batch.tickets) == 1:
                batch.deliver([error])
                return
            # One request's values may have broken the run (an index out of range): its neighbours must not pay for it.
            _log.warning("batch.split requests=%d rows=%d why=%r", len(batch.tickets), batch.rows, str(error))
            for single in batch.split():
                self._run(single)
            return
        batch.deliver(results)

    def _execute(self, batch: Batch) -> list[dict[str, Array]]:
        started_ns = time.perf_counter_ns()
        feeds = batch.gather()
        gathered_ns = time.perf_counter_ns()
        try:
            outputs = self._session.run(feeds)
        except DovetailError:
            raise
        except Exception as exc:
            # The thread must outlive whatever a native library throws, else the model would hang for good.
            _log.exception("engine.unexpected_error requests=%d rows=%d", len(batch.tickets), batch.rows)
            raise EngineError("the engine failed in a way it does not document; the log has the details") from exc
        inferred_ns = time.perf_counter_ns()
        parts = batch.scatter(outputs)
        self._on_executed(
            Execution(
                rows=batch.rows,
                queue_ns=[started_ns - ticket.enqueued_ns for ticket in batch.tickets],
                input_ns=gathered_ns - started_ns,
                infer_ns=inferred_ns - gathered_ns,
                output_ns=time.perf_counter_ns() - inferred_ns,
            )
        )
        return list(parts)
