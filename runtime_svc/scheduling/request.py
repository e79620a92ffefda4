# SPDX-License-Identifier: Apache-2.0
"""What is to be run: arrays that were checked against a model's signature, and what their sender wants of the queue.

It says nothing of how it came here; decoding is the business of `runtime_svc.protocol`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dovetail.tensor import Array


@dataclass(frozen=True, slots=True)
class SequenceStep:
    """Which sequence a request belongs to.

    Attributes:
        sequence_id: Of the sequence; 0 and "" are no ids.
        start: It is the sequence's first request.
        end: It is the last.
    """

    sequence_id: int | str
    start: bool
    end: bool


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """Arrays to run, already checked against the model's signature.

    Attributes:
        feeds: Input name -> array; if `rows` counts, all have that many along axis 0. They stay as they are until
            the reply is there.
        rows: Rows along the batch axis; 1 for models that are not batched.
        deadline_s: Instant, on the clock's monotonic scale, after which the caller is gone.
        timeout_us: Longest wait in the queue that the caller wants, in microseconds; 0: as long as the caller waits.
        priority: 1 is first; 0: the model's default level.
        sequence: Of a request to a model with sequences; others ignore it.
        outputs: Names asked for; empty: all. A scheduler may still give all.
    """

    feeds: Mapping[str, Array]
    rows: int = 1
    deadline_s: float | None = None
    timeout_us: int = 0
    priority: int = 0
    sequence: SequenceStep | None = None
    outputs: frozenset[str] = frozenset()
