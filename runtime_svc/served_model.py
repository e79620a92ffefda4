# SPDX-License-Identifier: Apache-2.0
"""A model in service: its facts, its configuration, its scheduler, its figures.

The acquire layer builds one from verified files and hands it to the repository; the protocol servicer leases it for
the time of one request. What it does not know: where artifacts come from, any protocol, and how requests are queued.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing, contextmanager
from typing import TypeVar, cast

from dovetail.clock import Clock, SystemClock
from dovetail.engines.base import Session
from dovetail.errors import DeadlineError, EngineError, InvalidInputError, UnavailableError
from dovetail.tensor import Array
from runtime_svc.configuration.serving_config import ServingConfig
from runtime_svc.model_facts import ModelFacts
from runtime_svc.scheduling.base import Scheduler, SchedulerParts
from runtime_svc.scheduling.choice import start_scheduler
from runtime_svc.scheduling.fairness import Gate
from runtime_svc.scheduling.policy import check_config
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.spare_time import SpareWork
from runtime_svc.statistics import Execution, Failure, ModelStatistics, Refusal

__all__ = ["ModelFacts", "ServedModel"]

T = TypeVar("T")


class ServedModel:
    """One model that answers requests. Belongs to the event loop that started it.

    Args:
        facts: What it is, as it is under the configuration.
        scheduler: Runs its requests; the model closes it.
        config: How it is served.

    Attributes:
        facts: See ModelFacts.
        config: See ServingConfig.
        scheduler: Runs the requests. A wrapper (a response cache) may be put around it before the model is installed.
        statistics: Where runs are recorded. Its own until it is installed in a repository, so that warm-up and
            goldens do not count; from then on the model version's.
        load_ms: Time from verified files to a ready session; 0 if nobody timed it.
        alive: False while nothing can run it, such as a process that died and is started again; for any thread.
    """

    def __init__(self, facts: ModelFacts, scheduler: Scheduler, config: ServingConfig | None = None) -> None:
        self.facts = facts
        self.config = config or ServingConfig()
        self.scheduler = scheduler
        self.statistics = ModelStatistics()
        self.load_ms = 0.0
        self.alive: Callable[[], bool] = lambda: True
        self._closing: asyncio.Future[None] | None = None
        self._leases = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @classmethod
    def start(
        cls,
        facts: ModelFacts,
        sessions: Sequence[Session],
        config: ServingConfig | None = None,
        clock: Clock | None = None,
        gate: Gate | None = None,
    ) -> ServedModel:
        """Put loaded sessions into service with the scheduler that the configuration asks for; it owns them now.

        Args:
            facts: What they are, as the artifact says.
            sessions: One or more of the same artifact. A session that says it is concurrent may be named twice.
            config: How to serve them.
            clock: Judges deadlines.
            gate: Shared by the models of the process; None: this one has the processor for itself.

        Raises:
            InvalidInputError: There is no session, or the configuration does not fit the facts.
        """
        if not sessions:
            raise InvalidInputError(f"model '{facts.name}' has no session to run it")
        config = config or ServingConfig()
        check_config(facts, config)
        facts = facts.served_as(config)
        model: ServedModel

        def record(execution: Execution) -> None:
            model.statistics.record_execution(execution)

        def refuse(reason: Refusal) -> None:
            model.statistics.record_refusal(reason)

        parts = SchedulerParts(facts, tuple(sessions), config, record, clock or SystemClock(), refuse, gate)
        model = cls(facts, start_scheduler(parts), config)
        return model

    @property
    def pending(self) -> int:
        """Requests that wait for a run."""
        return self.scheduler.pending

    @property
    def instances(self) -> int:
        """Engine instances, each with its thread."""
        return self.scheduler.instances

    @property
    def decoupled(self) -> bool:
        """True if a request has any number of replies, so that only `responses` gives them."""
        return self.config.decoupled

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Keeps the model open; whoever will call `infer` holds one from the moment they found the model."""
        self._leases += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._leases -= 1
            if self._leases == 0:
                self._unused.set()

    async def infer(self, request: InferenceRequest) -> Mapping[str, Array]:
        """Outputs for a checked request, by name.

        Raises:
            As `Scheduler.infer`.
        """
        started_ns = time.perf_counter_ns()
        try:
            return await self.scheduler.infer(request)
        except BaseException as error:
            self.statistics.record_failure(time.perf_counter_ns() - started_ns, _failure(error))
            raise

    async def responses(self, request: InferenceRequest) -> AsyncGenerator[Mapping[str, Array], None]:
        """All replies to a checked request, one for a model that is not decoupled; see `Scheduler.responses`.

        Closing it before its end tells the scheduler that the caller is gone.

        Raises:
            As `Scheduler.infer`.
        """
        started_ns = time.perf_counter_ns()
        try:
            replies = cast("AsyncGenerator[Mapping[str, Array], None]", self.scheduler.responses(request))
            async with aclosing(replies):
                async for reply in replies:
                    yield reply
        except BaseException as error:
            self.statistics.record_failure(time.perf_counter_ns() - started_ns, _failure(error))
            raise

    def offer_spare(self, work: Callable[[Session], T]) -> Future[T]:
        """Have an engine thread call `work` as soon as no request is queued; for any thread. See `spare_time`."""
        spare = SpareWork(work)
        self.scheduler.offer_spare(spare)
        return spare.future

    def succeed(self, replaced: ServedModel) -> None:
        """Have sequences that began on the model that this one replaces go on there; before either is closed."""
        take_over = getattr(self.scheduler, "take_over", None)
        if take_over is not None:
            take_over(replaced.scheduler)

    async def close(self) -> None:
        """Let leases end and the queue drain, then stop the threads and free the sessions, off the event loop.

        May be called more than once; cancelling the caller does not stop it.
        """
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._drain_and_close())
        await asyncio.shield(self._closing)

    async def _drain_and_close(self) -> None:
        await self._unused.wait()
        await self.scheduler.close()


def _failure(error: BaseException) -> Failure:
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return Failure.CANCELED
    if isinstance(error, UnavailableError | DeadlineError):
        return Failure.REJECTED
    return Failure.BACKEND if isinstance(error, EngineError) else Failure.OTHER
