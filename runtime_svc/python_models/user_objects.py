# SPDX-License-Identifier: Apache-2.0
"""What a Python model's own code is given: a context when it is loaded, and a request for each run.

These classes are the whole surface, with `OpenRequest` of iterative models; a model needs to import none of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dovetail.tensor import Array, TensorSpec


@dataclass(frozen=True, slots=True)
class Context:
    """Where and how a model is loaded.

    Attributes:
        name: Of the model.
        version: Of the model.
        folder: With `model.py` and whatever lies beside it; also the working directory, and searched for imports.
        inputs: Signature, whole: with the batch axis if `max_batch_size` is above 0.
        outputs: Likewise.
        max_batch_size: Most rows of a run; 0: requests are not batched.
        decoupled: True if `infer` gives any number of replies.
        parameters: Those of the configuration.
        instance: Number of this process among those of the model, from 0.
        instances: How many there are.
        iterative: True if `infer` gets a list of requests, each of which may have many turns.
    """

    name: str
    version: int
    folder: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    decoupled: bool
    parameters: Mapping[str, str]
    instance: int
    instances: int
    iterative: bool = False


@dataclass(frozen=True, slots=True)
class Sequence:
    """Which sequence a row belongs to.

    Attributes:
        id: Of the sequence.
        start: It is the sequence's first request.
        end: It is the last.
        ready: False for a row that only fills a place: nothing in it means anything.
    """

    id: int | str
    start: bool
    end: bool
    ready: bool = True


@dataclass(frozen=True, slots=True)
class Caller:
    """One of those who wait for the outputs of a run.

    Attributes:
        rows: Which rows are theirs.
    """

    rows: slice
    _deadline_s: float | None = None
    _has_left: Callable[[], bool] = lambda: False

    @property
    def cancelled(self) -> bool:
        """True once they have left, or their deadline has passed: nobody will read these rows."""
        return self._has_left() or (self._deadline_s is not None and time.monotonic() >= self._deadline_s)

    @property
    def remaining_s(self) -> float | None:
        """Seconds until they give up, 0 or more; None: never."""
        return None if self._deadline_s is None else max(self._deadline_s - time.monotonic(), 0.0)


class Request(Mapping[str, Array]):
    """Inputs by name, and what is known about those who wait for the outputs.

    Arrays are the model's to keep or to write to. If the model is batched, axis 0 of each is the batch, and one run
    may hold the rows of several callers. An optional input that was left out is not in it.

    Attributes:
        rows: Rows along the batch axis; 1 if the model is not batched.
        sequences: Of a model with sequences: one for each row; else empty.
        callers: Those who wait, in the order of their rows; rows that are nobody's only fill the batch.
    """

    def __init__(
        self,
        inputs: Mapping[str, Array],
        *,
        rows: int,
        sequences: tuple[Sequence, ...] = (),
        callers: tuple[Caller, ...] = (),
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self._inputs = dict(inputs)
        self.rows = rows
        self.sequences = sequences
        self.callers = callers
        self._is_cancelled = is_cancelled

    def __getitem__(self, name: str) -> Array:
        return self._inputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._inputs)

    def __len__(self) -> int:
        return len(self._inputs)

    @property
    def sequence(self) -> Sequence | None:
        """Of the first row; None for a model without sequences."""
        return self.sequences[0] if self.sequences else None

    @property
    def cancelled(self) -> bool:
        """True once nobody waits for the outputs any more, so that a long computation may stop early."""
        return self._is_cancelled() or (bool(self.callers) and all(caller.cancelled for caller in self.callers))

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the last caller gives up, 0 or more; None if one never does."""
        longest_s = 0.0
        for caller in self.callers:
            remaining_s = caller.remaining_s
            if remaining_s is None:
                return None
            longest_s = max(longest_s, remaining_s)
        return longest_s if self.callers else None
