# SPDX-License-Identifier: Apache-2.0
"""Dynamic batching: a bounded queue that requests enter from the event loop and engine threads empty in batches.

A batch is closed late: it is what had queued while the engine was busy, so an idle engine adds no delay and a busy
one gets fuller batches, without any timer. Requests share a batch only if their arrays differ in nothing but the
number of rows (axis 0), and never overtake each other. A request that nobody waits for any more, because it was
cancelled or its time is over, is dropped before it costs an execution.

What lives here is queueing, closing and scattering; running a batch is `instance`, checking a request against a
model's signature is `protocol.request_decoding`.

Source: Triton Inference Server, dynamic batcher (FIFO scan, stop at the first request that does not fit, zero queue
delay); the queue's bound counts rows, not requests, because rows are what costs time.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dovetail.clock import Clock, SystemClock
from dovetail.errors import DeadlineError, DovetailError, EngineError, InvalidInputError, UnavailableError
from dovetail.tensor import Array
from runtime_svc.spare_time import SpareWork

DEFAULT_QUEUE_ROWS = 4096  # 512 full batches of 8: seconds of work on a small device, and bounded memory on all

Layout = tuple[tuple[str, str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """Arrays to run, already checked against the model's signature.

    Attributes:
        feeds: Input name -> array; if `rows` counts, all have that many along axis 0.
        rows: Rows along the batch axis; 1 for models that are not batched.
        deadline_s: Instant, on the clock's monotonic scale, after which the caller is gone.
        queue_deadline_s: Instant after which the caller does not want it started any more.
    """

    feeds: Mapping[str, Array]
    rows: int = 1
    deadline_s: float | None = None
    queue_deadline_s: float | None = None


@dataclass(eq=False, slots=True)
class Ticket:
    """A request in the queue and where its answer goes."""

    request: InferenceRequest
    future: asyncio.Future[dict[str, Array]]
    layout: Layout
    enqueued_ns: int = field(default_factory=time.perf_counter_ns)

    def resolve(self, result: dict[str, Array] | DovetailError) -> None:
        """Hand the answer over, on the loop; nothing happens if the caller is gone."""
        if self.future.done():
            return
        if isinstance(result, DovetailError):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests that run together, in order of arrival."""

    tickets: tuple[Ticket, ...]

    @property
    def rows(self) -> int:
        """Rows of all requests."""
        return sum(ticket.request.rows for ticket in self.tickets)

    def gather(self) -> Mapping[str, Array]:
        """Input arrays of the whole batch; those of a single request are passed on without a copy."""
        first = self.tickets[0].request.feeds
        if len(self.tickets) == 1:
            return first
        return {name: np.concatenate([ticket.request.feeds[name] for ticket in self.tickets]) for name in first}

    def scatter(self, outputs: Mapping[str, Array]) -> list[dict[str, Array]]:
        """Each request's own rows of the outputs, in the order of `tickets`; views, not copies.

        Raises:
            EngineError: An output does not have the batch's rows along axis 0, so nobody can say whose they are.
        """
        if len(self.tickets) == 1:
            return [dict(outputs)]
        rows = self.rows
        for name, array in outputs.items():
            if array.ndim == 0 or array.shape[0] != rows:
                raise EngineError(
                    f"output '{name}' has shape {list(array.shape)} for a batch of {rows} rows:"
                    " the model cannot be batched"
                )
        parts: list[dict[str, Array]] = []
        start = 0
        for ticket in self.tickets:
            end = start + ticket.request.rows
            parts.append({name: array[start:end] for name, array in outputs.items()})
            start = end
        return parts

    def split(self) -> list[Batch]:
        """One batch for each request."""
        return [Batch((ticket,)) for ticket in self.tickets]

    def deliver(self, results: Sequence[dict[str, Array] | DovetailError]) -> None:
        """Hand each request its result; called from any thread, wakes the event loop once."""

        def resolve_all() -> None:
            for ticket, result in zip(self.tickets, results, strict=True):
                ticket.resolve(result)

        self.tickets[0].future.get_loop().call_soon_threadsafe(resolve_all)


class Batcher:
    """The queue of one served model.

    `infer` and `close` belong to the event loop, `take` to engine threads; the rest may be used from anywhere.

    Args:
        model: Name, for messages.
        max_batch_size: Most rows in a batch; 0 runs every request alone.
        max_queue_rows: Most rows that wait; one request is always let into an empty queue.
        clock: Judges deadlines.
    """

    def __init__(
        self,
        model: str,
        *,
        max_batch_size: int,
        max_queue_rows: int = DEFAULT_QUEUE_ROWS,
        clock: Clock | None = None,
    ) -> None:
        self._model = model
        self._max_batch_size = max_batch_size
        self._max_queue_rows = max_queue_rows
        self._clock = clock or SystemClock()
        self._changed = threading.Condition()
        self._queue: deque[Ticket] = deque()
        self._queued_rows = 0
        self._spare: deque[SpareWork[Any]] = deque()
        self._closed = False

    @property
    def pending(self) -> int:
        """Requests that wait for a batch."""
        return len(self._queue)

    async def infer(self, request: InferenceRequest) -> dict[str, Array]:
        """Queue a request and wait for its outputs.

        Raises:
            InvalidInputError: It has more rows than a batch may have, or none.
            UnavailableError: The queue is full, the model is being closed, or it waited longer than it wanted to.
            DeadlineError: The caller's deadline passed while it waited.
            EngineError: The engine failed.
        """
        self._check_rows(request.rows)
        ticket = Ticket(request, asyncio.get_running_loop().create_future(), _layout(request.feeds))
        self._enqueue(ticket)
        try:
            return await ticket.future
        except asyncio.CancelledError:
            self._withdraw(ticket)
            raise

    def offer_spare(self, work: SpareWork[Any]) -> None:
        """Have an engine thread do this as soon as nothing is queued."""
        with self._changed:
            if self._closed:
                work.future.cancel()
                return
            self._spare.append(work)
            self._changed.notify()

    def take(self) -> Batch | SpareWork[Any] | None:
        """The next batch, else spare work; blocks while there is neither. None once closed and the queue is empty."""
        with self._changed:
            while True:
                batch = self._collect()
                if batch is not None:
                    return batch
                if self._closed:
                    return None
                if self._spare:
                    return self._spare.popleft()
                self._changed.wait()

    def close(self) -> None:
        """Take no more requests; those queued are still served. Spare work that has not begun is cancelled."""
        with self._changed:
            self._closed = True
            while self._spare:
                self._spare.popleft().future.cancel()
            self._changed.notify_all()

    def _check_rows(self, rows: int) -> None:
        if self._max_batch_size and rows > self._max_batch_size:
            raise InvalidInputError(
                f"inference request batch-size must be <= {self._max_batch_size} for '{self._model}'"
            )
        if rows < 1:
            raise InvalidInputError(f"inference request batch-size must be >= 1 for '{self._model}'")

    def _enqueue(self, ticket: Ticket) -> None:
        rows = ticket.request.rows
        with self._changed:
            if self._closed:
                raise UnavailableError(f"model '{self._model}' is being unloaded")
            if self._queue and self._queued_rows + rows > self._max_queue_rows:
                raise UnavailableError("Exceeds maximum queue size")
            self._queue.append(ticket)
            self._queued_rows += rows
            self._changed.notify()

    def _withdraw(self, ticket: Ticket) -> None:
        with self._changed:
            if ticket in self._queue:
                self._queue.remove(ticket)
                self._queued_rows -= ticket.request.rows

    def _collect(self) -> Batch | None:
        tickets: list[Ticket] = []
        rows = 0
        while self._queue:
            ticket = self._queue[0]
            fault = self._reason_to_drop(ticket)
            if fault is None and tickets and not self._fits(ticket, tickets[0], rows):
                break
            self._queue.popleft()
            self._queued_rows -= ticket.request.rows
            if fault is not None:
                Batch((ticket,)).deliver([fault])
                continue
            tickets.append(ticket)
            rows += ticket.request.rows
        return Batch(tuple(tickets)) if tickets else None

    def _reason_to_drop(self, ticket: Ticket) -> DovetailError | None:
        request, now_s = ticket.request, self._clock.monotonic_s()
        if request.deadline_s is not None and now_s >= request.deadline_s:
            return DeadlineError(f"the deadline passed while the request waited for model '{self._model}'")
        if request.queue_deadline_s is not None and now_s >= request.queue_deadline_s:
            return UnavailableError("Request timeout expired")
        return None

    def _fits(self, ticket: Ticket, first: Ticket, rows: int) -> bool:
        return rows + ticket.request.rows <= self._max_batch_size and ticket.layout == first.layout


def _layout(feeds: Mapping[str, Array]) -> Layout:
    """All that must be equal for two requests to share a batch: names, dtypes and shapes beyond axis 0."""
    return tuple((name, array.dtype.str, array.shape[1:]) for name, array in sorted(feeds.items()))
