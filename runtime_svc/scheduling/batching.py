# SPDX-License-Identifier: Apache-2.0
"""The scheduler of ordinary models: requests are queued and batched, and each has one reply.

What lives here is a request's way through; the rules are in the files beside this one: `queue` and `policy` (who
waits), `admission` (who is refused), `closing` (what is a batch), `layout`, `gathering` and `splitting` (what goes into
a run and comes out of it), `ordering` (who leaves first), `fairness` (who gets the processor).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping

from dovetail.errors import InvalidInputError
from dovetail.tensor import Array
from runtime_svc.scheduling.base import SchedulerParts
from runtime_svc.scheduling.dispatch import Dispatcher, Turn
from runtime_svc.scheduling.instance import Instance
from runtime_svc.scheduling.layout import Layouts
from runtime_svc.scheduling.ordering import ReplyOrder
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.scheduling.splitting import join, split
from runtime_svc.scheduling.threaded import ThreadedScheduler
from runtime_svc.scheduling.ticket import Ticket
from runtime_svc.statistics import Execution


class BatchingScheduler(ThreadedScheduler):
    """See `Scheduler`.

    Args:
        parts: What it is made of.
    """

    _queue: Dispatcher

    def __init__(self, parts: SchedulerParts) -> None:
        facts, config = parts.facts, parts.config
        self._model = facts.name
        self._limit = facts.max_batch_size
        self._splits = config.split_oversize
        self._even = not config.allowed_batch_sizes
        self._record = parts.record
        self._layouts = Layouts(config, batched=facts.max_batch_size > 0)
        ordered = config.batching is not None and config.batching.preserve_ordering
        overtakes = len(parts.sessions) > 1 or config.split_oversize  # parts are joined later than they are done
        self._order = ReplyOrder() if ordered and overtakes else None
        dispatcher = Dispatcher(parts, len(parts.sessions))
        gate = parts.gate if _keeps_cores_busy(parts) else None
        share = None if gate is None else gate.share(weight=config.weight, threads=config.threads)
        instances = [Instance(session, dispatcher, parts, Turn(gate, share)) for session in parts.sessions]
        super().__init__(parts, dispatcher, [instance.serve for instance in instances])

    async def infer(self, request: InferenceRequest) -> Mapping[str, Array]:
        """See `Scheduler`."""
        rows = request.rows
        if rows < 1:
            raise InvalidInputError(f"inference request batch-size must be >= 1 for '{self._model}'")
        if self._limit and rows > self._limit:
            if not self._splits:
                raise InvalidInputError(f"inference request batch-size must be <= {self._limit} for '{self._model}'")
            return await self._infer_in_parts(request)
        ticket = self._ticket(request)
        self._queue.submit((ticket,))
        if self._order is None:
            return await self._outcome(ticket)
        async with self._order.place():
            return await self._outcome(ticket)

    async def responses(self, request: InferenceRequest) -> AsyncIterator[Mapping[str, Array]]:
        """The one reply."""
        yield await self.infer(request)

    async def _outcome(self, ticket: Ticket) -> Mapping[str, Array]:
        try:
            return await ticket.future
        except asyncio.CancelledError:
            self._queue.withdraw(ticket)
            raise

    async def _infer_in_parts(self, request: InferenceRequest) -> Mapping[str, Array]:
        tickets = [self._ticket(part, part=True) for part in split(request, self._limit, even=self._even)]
        self._queue.submit(tickets)
        if self._order is None:
            return await self._joined(tickets)
        async with self._order.place():
            return await self._joined(tickets)

    async def _joined(self, tickets: list[Ticket]) -> Mapping[str, Array]:
        try:
            parts = await asyncio.gather(*(ticket.future for ticket in tickets))
        except BaseException:  # the others would be run for nobody
            for ticket in tickets:
                ticket.future.cancel()
                if ticket.future.cancelled():
                    self._queue.withdraw(ticket)
            raise
        inferred_ns = time.perf_counter_ns()
        outputs = await asyncio.to_thread(join, parts, [ticket.request.rows for ticket in tickets])
        started_ns = min(ticket.started_ns for ticket in tickets)
        self._record(
            Execution(
                rows=0,
                queue_ns=[started_ns - tickets[0].enqueued_ns],
                input_ns=0,
                infer_ns=inferred_ns - started_ns,
                output_ns=time.perf_counter_ns() - inferred_ns,
                runs=0,
            )
        )
        return outputs

    def _ticket(self, request: InferenceRequest, *, part: bool = False) -> Ticket:
        layout, length, bucket = self._layouts.place(request.feeds)
        return Ticket(
            request,
            asyncio.get_running_loop().create_future(),
            layout,
            length=length,
            bucket=bucket,
            size_bytes=_size_bytes(request.feeds),
            part=part,
        )


def start_batching(parts: SchedulerParts) -> BatchingScheduler:
    """A running batching scheduler."""
    scheduler = BatchingScheduler(parts)
    scheduler.start()
    return scheduler


def _keeps_cores_busy(parts: SchedulerParts) -> bool:
    """True if runs take the processor from other models of this process.

    One on another device does not. One whose session says that it is `outside` may do anything, such as wait for a
    request of its own to this very server, which would never get a turn if the wait held one.
    """
    return parts.facts.device == "cpu" and not any(getattr(session, "outside", False) for session in parts.sessions)


def _size_bytes(feeds: Mapping[str, Array]) -> int:
    """Memory of a request's inputs; of strings what they hold."""
    size = 0
    for array in feeds.values():
        size += array.nbytes
        if array.dtype.hasobject:
            size += sum(map(len, array.flat))
    return size
