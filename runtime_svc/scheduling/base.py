# SPDX-License-Identifier: Apache-2.0
"""What a scheduler is: it decides when a request runs and with whom, and owns the engine instances that run it.

One kind per file; which of them a model gets, `choice` says. A scheduler knows no protocol and no repository.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from dovetail.clock import Clock
from dovetail.engines.base import Session
from dovetail.tensor import Array
from runtime_svc.configuration.serving_config import ServingConfig
from runtime_svc.model_facts import ModelFacts
from runtime_svc.scheduling.fairness import Gate
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.spare_time import SpareWork
from runtime_svc.statistics import Execution, Refusal


class Scheduler(Protocol):
    """Runs the requests of one served model. Belongs to the event loop that started it."""

    @property
    def pending(self) -> int:
        """Requests that wait for a run; for any thread."""
        ...

    @property
    def instances(self) -> int:
        """Engine instances, each with its thread; for any thread."""
        ...

    async def infer(self, request: InferenceRequest) -> Mapping[str, Array]:
        """The one reply to a request: outputs by name; arrays are the caller's, but may share memory with others'
        and must not be written to. Cancelling it withdraws the request if it does not run yet.

        Raises:
            InvalidInputError: It has more rows than the model takes.
            UnavailableError: The queue is full, it waited longer than it wanted to, or the model is being closed.
            DeadlineError: The caller's deadline passed while it waited, or would pass.
            UnsupportedError: The model's requests have any number of replies.
            EngineError: The engine failed.
        """
        ...

    def responses(self, request: InferenceRequest) -> AsyncIterator[Mapping[str, Array]]:
        """All replies to a request, of which there may be none; one for a model that is not decoupled.

        Raises:
            As `infer`, from the iteration.
        """
        ...

    def offer_spare(self, work: SpareWork[Any]) -> None:
        """Have an engine thread do this as soon as nothing is queued; cancelled if the model is closed before. For
        any thread.
        """
        ...

    async def close(self) -> None:
        """Serve what is queued, take nothing more, then end threads and close sessions, off the event loop."""
        ...


@dataclass(frozen=True, slots=True)
class SchedulerParts:
    """What a scheduler is made of.

    Attributes:
        facts: Of the model, as they are under the configuration.
        sessions: One or more of the same artifact; the scheduler owns them. A session that says it is concurrent may
            be there twice.
        config: How to serve.
        record: Takes each run of the engine that succeeded; for any thread.
        clock: Judges deadlines.
        refuse: Takes why a request was refused or dropped without a run; for any thread.
        gate: Shared by the models of the process; None: the model has the processor for itself.
    """

    facts: ModelFacts
    sessions: tuple[Session, ...]
    config: ServingConfig
    record: Callable[[Execution], None]
    clock: Clock
    refuse: Callable[[Refusal], None] = lambda reason: None
    gate: Gate | None = None
