# SPDX-License-Identifier: Apache-2.0
"""What a session may be told about the callers of a run, beside the arrays.

A session that wants to know has a method `expect(contexts)`, called on the thread that then calls `run`. It may give
back a number for that run; then `cancel(place, number)`, from any thread and at any time, says that the caller at that
place of `contexts` has left. Engines that compute the same whoever asks have none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dovetail.engines.base import Session
from runtime_svc.scheduling.request import InferenceRequest, SequenceStep


@dataclass(frozen=True, slots=True)
class CallContext:
    """One caller's part of a run.

    Attributes:
        rows: How many rows are theirs; the parts follow each other along axis 0.
        deadline_s: Instant, on the system's monotonic scale, after which they are gone; None: never.
        sequence: Which sequence it is; None if the model has none.
        ready: False for rows that only fill a place.
    """

    rows: int = 1
    deadline_s: float | None = None
    sequence: SequenceStep | None = None
    ready: bool = True

    @staticmethod
    def of(request: InferenceRequest) -> CallContext:
        """For a request."""
        return CallContext(request.rows, request.deadline_s, request.sequence)


Expect = Callable[[Sequence[CallContext]], int | None]


def expectation_of(session: Session) -> Expect | None:
    """The session's `expect`; None if it does not want to know."""
    expect: Expect | None = getattr(session, "expect", None)
    return expect
