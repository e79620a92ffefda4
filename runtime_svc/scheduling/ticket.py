# SPDX-License-Identifier: Apache-2.0
"""A request on its way through the queue, and the way of its answer back to the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dovetail.errors import DovetailError
from dovetail.tensor import Array
from runtime_svc.scheduling.layout import Layout
from runtime_svc.scheduling.request import InferenceRequest

Result = Mapping[str, Array] | DovetailError


@dataclass(eq=False, slots=True)
class Ticket:
    """A request in the queue.

    Attributes:
        request: What to run.
        future: Where the answer goes; of the event loop that the scheduler belongs to.
        layout: What it must have in common with those it shares a batch with.
        length: Its length along the bucketed axis; 0 if that is not padded.
        bucket: What it is padded to; 0 likewise.
        level: Index of its priority level, 0 is first.
        size_bytes: Of its inputs.
        enqueued_s: When it came, on the scheduler's clock.
        expires_s: When it has waited for longer than it may, on that clock; None: never.
        part: It is a part of a larger request, whose splitter counts it.
        late: It has waited for too long, and is served after those that have not.
        number: Of its instant in the queue; 0 if it has none.
        started_ns: When its run began; 0 before.
        enqueued_ns: When it came, on the performance counter.
        on_leave: Called on the event loop when its caller leaves while it runs; None: nobody wants to know.
    """

    request: InferenceRequest
    future: asyncio.Future[Mapping[str, Array]]
    layout: Layout
    length: int = 0
    bucket: int = 0
    level: int = 0
    size_bytes: int = 0
    enqueued_s: float = 0.0
    expires_s: float | None = None
    part: bool = False
    late: bool = False
    number: int = 0
    started_ns: int = 0
    enqueued_ns: int = field(default_factory=time.perf_counter_ns)
    on_leave: Callable[[], None] | None = None


def settle(future: asyncio.Future[Mapping[str, Array]], result: Result) -> None:
    """Hand a caller its answer, on the loop; nothing happens if the caller is gone."""
    if future.done():
        return
    if isinstance(result, DovetailError):
        future.set_exception(result)
    else:
        future.set_result(result)


def deliver(tickets: Sequence[Ticket], results: Sequence[Result]) -> None:
    """Hand each request its result; called from any thread, wakes the event loop once."""

    def resolve_all() -> None:
        for ticket, result in zip(tickets, results, strict=True):
            settle(ticket.future, result)

    if tickets:
        tickets[0].future.get_loop().call_soon_threadsafe(resolve_all)
