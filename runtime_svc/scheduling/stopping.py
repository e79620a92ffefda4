# SPDX-License-Identifier: Apache-2.0
"""Ending a run in its middle when nobody waits for its answers any more.

A request that is cancelled, or whose deadline passes, leaves the queue at once (`dispatch`). One that runs already
shares its run with others: that is stopped when the last of its callers has left, if the engine can do so. Short runs
are left alone, because making them stoppable may cost as much as they do. A session that is told who its callers are
(`call_context`) has runs with a method `leave(place)`, too, which is told of each of them who leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from dovetail.engines.base import Session, StoppableRun
from dovetail.tensor import Array
from runtime_svc.scheduling.batch import Batch

WORTH_STOPPING_S = 5e-3
"""Shortest run that is worth it: a hundred times what making it stoppable costs."""

Stoppable = Callable[[], StoppableRun]


def stoppable_of(session: Session) -> Stoppable | None:
    """The session's `stoppable`; None if its runs cannot be stopped."""
    stoppable: Stoppable | None = getattr(session, "stoppable", None)
    return stoppable


def run_while_wanted(run: StoppableRun, batch: Batch, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run a batch; stops when all of its callers have left. Called on the instance's thread.

    Raises:
        CancelledError: It was stopped.
        DovetailError: As `Session.run`.
    """
    leave: Callable[[int], None] | None = getattr(run, "leave", None)

    def on_leave(place: int) -> None:  # on the event loop
        if leave is not None:
            leave(place)
        if batch.abandoned:
            run.stop()

    for place, ticket in enumerate(batch.tickets):
        ticket.on_leave = partial(on_leave, place)
    try:
        for place, ticket in enumerate(batch.tickets):
            if ticket.future.cancelled():  # before anybody listened
                on_leave(place)
        return run.run(feeds)
    finally:
        for ticket in batch.tickets:
            ticket.on_leave = None
