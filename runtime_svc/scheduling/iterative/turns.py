# SPDX-License-Identifier: Apache-2.0
"""What an iterative model's session is asked and answers: a turn of each of several requests, run together.

A session remembers a request from its first turn until it does not ask for another one, or is told that it has ended.
Which requests have a turn when is `queue`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from dovetail.engines.base import Session
from dovetail.errors import DovetailError
from dovetail.tensor import Array
from runtime_svc.scheduling.request import InferenceRequest


@dataclass(frozen=True, slots=True)
class Turn:
    """One request's part in a run.

    Attributes:
        key: Number of the request, of its own for each request of a session.
        opening: The request, on its first turn; None afterwards, because the session remembers it.
    """

    key: int
    opening: InferenceRequest | None = None


@dataclass(frozen=True, slots=True)
class TurnResult:
    """What came of a turn.

    Attributes:
        replies: In order.
        again: The request wants another turn; else it is over, and the session has forgotten it.
        error: It is over, and this comes after the replies.
    """

    replies: Sequence[Mapping[str, Array]] = ()
    again: bool = False
    error: DovetailError | None = None


class IterativeSession(Session, Protocol):
    """A session whose requests may have any number of turns."""

    iterative: bool

    def run_turns(self, turns: Sequence[Turn], ended: Sequence[int]) -> list[TurnResult]:
        """Run once. A request that the session does not know, because it was started again, ends with an error.

        Args:
            turns: Of different requests; may be empty.
            ended: Requests that have no turn any more, because their callers are gone.

        Raises:
            DovetailError: The run failed, and with it all requests that had a turn.
        """
        ...
