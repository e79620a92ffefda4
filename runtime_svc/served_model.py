# SPDX-License-Identifier: Apache-2.0
"""A loaded artifact in service: its facts, its queue, its engine instances.

The acquire layer builds one from verified files and hands it to the repository; the protocol servicer leases it for
the time of one request. What it does not know: where artifacts come from, and any protocol.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from dovetail.clock import Clock
from dovetail.digest import check_name
from dovetail.engines.base import Session
from dovetail.errors import InvalidInputError
from dovetail.tensor import Array, TensorSpec
from runtime_svc.batcher import DEFAULT_QUEUE_ROWS, Batcher, InferenceRequest
from runtime_svc.instance import Instance
from runtime_svc.spare_time import SpareWork
from runtime_svc.statistics import Execution, ModelStatistics

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known about a loaded artifact, from its manifest.

    Attributes:
        name: Model.
        version: Model version, 1 or higher.
        inputs: Signature; shapes are whole, so the batch axis is in them if `max_batch_size` is above 0.
        outputs: Likewise.
        max_batch_size: Most rows that may run at once; 0 if requests must not be batched.
        artifact_key: Of the artifact.
        recipe: Name of its recipe.
        engine: Name of the engine that runs it.
        platform: What ModelMetadata calls the platform; the engine's name unless something says it better.
        device: Device of the engine.
        labels: Other facts to show, such as the precision.
    """

    name: str
    version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    artifact_key: str
    recipe: str
    engine: str
    platform: str = ""
    device: str = "cpu"
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name, "model name")
        if self.version < 1:
            raise InvalidInputError(f"version of model '{self.name}' is {self.version}; expected 1 or higher")
        if self.max_batch_size < 0:
            raise InvalidInputError(f"max_batch_size of model '{self.name}' is {self.max_batch_size}; expected >= 0")
        if self.max_batch_size and any(not spec.shape for spec in self.inputs):
            raise InvalidInputError(f"model '{self.name}' has an input without axes, so its max_batch_size must be 0")


class ServedModel:
    """One loaded artifact that answers requests. Belongs to the event loop that started it.

    Attributes:
        facts: See ModelFacts.
        statistics: Where runs are recorded. Its own until it is installed in a repository, so that warm-up and
            goldens do not count; from then on the model version's.
        load_ms: Time from verified files to a ready session; 0 if nobody timed it.
    """

    def __init__(self, facts: ModelFacts, sessions: Sequence[Session], batcher: Batcher) -> None:
        self.facts = facts
        self.statistics = ModelStatistics()
        self.load_ms = 0.0
        self._sessions = tuple(sessions)
        self._batcher = batcher
        self._instances = [
            Instance(session, batcher, name=f"{facts.name}-{facts.version}-{index}", on_executed=self._record)
            for index, session in enumerate(self._sessions)
        ]
        self._closing: asyncio.Future[None] | None = None
        self._leases = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @classmethod
    def start(
        cls,
        facts: ModelFacts,
        sessions: Sequence[Session],
        *,
        max_queue_rows: int = DEFAULT_QUEUE_ROWS,
        clock: Clock | None = None,
    ) -> ServedModel:
        """Put loaded sessions into service, one thread each; it owns them from now on.

        Args:
            facts: What they are.
            sessions: One or more of the same artifact. A session that says it is concurrent may be named twice.
            max_queue_rows: Most rows that wait.
            clock: Judges deadlines.

        Raises:
            InvalidInputError: There is no session.
        """
        if not sessions:
            raise InvalidInputError(f"model '{facts.name}' has no session to run it")
        batcher = Batcher(facts.name, max_batch_size=facts.max_batch_size, max_queue_rows=max_queue_rows, clock=clock)
        model = cls(facts, sessions, batcher)
        for instance in model._instances:
            instance.start()
        return model

    @property
    def pending(self) -> int:
        """Requests that wait for a batch."""
        return self._batcher.pending

    @property
    def instances(self) -> int:
        """Engine instances, each with its thread."""
        return len(self._instances)

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

    async def infer(self, request: InferenceRequest) -> dict[str, Array]:
        """Outputs for a checked request, by name; arrays are the caller's.

        Raises:
            InvalidInputError: It has more rows than the model takes.
            UnavailableError: The queue is full, or it waited longer than it wanted to.
            DeadlineError: The caller's deadline passed while it waited.
            EngineError: The engine failed.
        """
        started_ns = time.perf_counter_ns()
        try:
            return await self._batcher.infer(request)
        except BaseException:
            self.statistics.record_failure(time.perf_counter_ns() - started_ns)
            raise

    def offer_spare(self, work: Callable[[Session], T]) -> Future[T]:
        """Have an engine thread call `work` as soon as no request is queued; for any thread. See `spare_time`."""
        spare = SpareWork(work)
        self._batcher.offer_spare(spare)
        return spare.future

    async def close(self) -> None:
        """Let leases end and the queue drain, then stop the threads and free the sessions, off the event loop.

        May be called more than once; cancelling the caller does not stop it.
        """
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._drain_and_release())
        await asyncio.shield(self._closing)

    async def _drain_and_release(self) -> None:
        await self._unused.wait()
        self._batcher.close()
        await asyncio.to_thread(self._release)

    def _release(self) -> None:
        for instance in self._instances:
            instance.join()
        for session in {id(session): session for session in self._sessions}.values():
            session.close()

    def _record(self, execution: Execution) -> None:
        self.statistics.record_execution(execution)
