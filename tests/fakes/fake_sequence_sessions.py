# SPDX-License-Identifier: Apache-2.0
"""Sessions of sequence models for tests: one that shows what it was given, and one whose state the scheduler keeps."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dovetail.clock import Clock, SystemClock
from dovetail.errors import EngineError
from dovetail.tensor import Array, TensorSpec
from runtime_svc.configuration.serving_config import (
    ControlInput,
    ControlKind,
    SequenceBatching,
    SequenceState,
    ServingConfig,
)
from runtime_svc.scheduling.base import SchedulerParts
from runtime_svc.scheduling.call_context import CallContext
from runtime_svc.scheduling.request import InferenceRequest, SequenceStep
from runtime_svc.scheduling.sequences.scheduler import SequenceScheduler, start_sequences
from runtime_svc.served_model import ModelFacts
from runtime_svc.statistics import Execution

CONTROLS = (
    ControlInput("START", ControlKind.START, "INT32"),
    ControlInput("END", ControlKind.END, "FP32", (-1.0, 2.0)),
    ControlInput("READY", ControlKind.READY, "BOOL"),
    ControlInput("CORRID", ControlKind.CORRID, "UINT64"),
)
STATE = SequenceState("STATE_IN", "STATE_OUT", "FP32", (1,))


class WatchedSession:
    """OUTPUT is INPUT; `runs` has what came. With `hold`, each run waits for `release`.

    Attributes:
        runs: Inputs of each run.
        contexts: What was said about each run's rows.
        generation: As of a session that may be started again.
    """

    concurrent = False
    inputs: tuple[TensorSpec, ...] = (
        TensorSpec("INPUT", "FP32", (-1, -1)),
        TensorSpec("START", "INT32", (-1, 1)),
        TensorSpec("END", "FP32", (-1, 1)),
        TensorSpec("READY", "BOOL", (-1, 1)),
        TensorSpec("CORRID", "UINT64", (-1, 1)),
    )
    outputs: tuple[TensorSpec, ...] = (TensorSpec("OUTPUT", "FP32", (-1, -1)),)

    def __init__(self, *, hold: bool = False) -> None:
        self.runs: list[dict[str, Array]] = []
        self.contexts: list[Sequence[CallContext]] = []
        self.generation = 1
        self.closed = threading.Event()
        self.started = threading.Semaphore(0)
        self._hold = hold
        self._permits = threading.Semaphore(0)

    def expect(self, contexts: Sequence[CallContext]) -> None:
        self.contexts.append(contexts)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        assert not self.closed.is_set(), "a closed session was run"
        self.runs.append({name: array.copy() for name, array in feeds.items()})
        self.started.release()
        if self._hold:
            assert self._permits.acquire(timeout=30), "nobody released the session"
        return self.compute(feeds)

    def compute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if (feeds["INPUT"] < 0).any():
            raise EngineError("negative")
        return {"OUTPUT": feeds["INPUT"].copy()}

    def release(self, runs: int = 1) -> None:
        self._permits.release(runs)

    def close(self) -> None:
        self.closed.set()


class SummingStateSession(WatchedSession):
    """OUTPUT and STATE_OUT are STATE_IN + INPUT; fails for negative inputs."""

    inputs = (TensorSpec("INPUT", "FP32", (-1, 1)), TensorSpec("STATE_IN", "FP32", (-1, 1)))
    outputs = (TensorSpec("OUTPUT", "FP32", (-1, 1)), TensorSpec("STATE_OUT", "FP32", (-1, 1)))

    def compute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if (feeds["INPUT"] < 0).any():
            raise EngineError("negative")
        total = feeds["STATE_IN"] + feeds["INPUT"]
        return {"OUTPUT": total, "STATE_OUT": total}


@dataclass
class Served:
    """A scheduler and what it recorded."""

    scheduler: SequenceScheduler
    sessions: list[WatchedSession]
    executions: list[Execution] = field(default_factory=list)


def serve(
    config: SequenceBatching,
    *sessions: WatchedSession,
    max_batch_size: int = 4,
    clock: Clock | None = None,
    max_queue_rows: int = 0,
) -> Served:
    """A running scheduler over sessions."""
    served = Served(None, list(sessions))  # type: ignore[arg-type]
    serving = ServingConfig(sequences=config, max_queue_rows=max_queue_rows)
    facts = sequence_facts(sessions[0], max_batch_size=max_batch_size).served_as(serving)
    parts = SchedulerParts(facts, tuple(sessions), serving, served.executions.append, clock or SystemClock())
    served.scheduler = start_sequences(parts)
    return served


def sequence_facts(session: WatchedSession, *, max_batch_size: int = 4, artifact_key: str = "a" * 64) -> ModelFacts:
    """Facts that fit a session."""
    return ModelFacts(
        name="m",
        version=1,
        inputs=session.inputs,
        outputs=session.outputs,
        max_batch_size=max_batch_size,
        artifact_key=artifact_key,
        recipe="fake-fp32",
        engine="fake",
    )


def step(
    sequence_id: int | str,
    value: float = 1.0,
    *,
    start: bool = False,
    end: bool = False,
    columns: int = 1,
    **options: object,
) -> InferenceRequest:
    """A request of a sequence."""
    feeds = {"INPUT": np.full((1, columns), value, np.float32)}
    return InferenceRequest(feeds, sequence=SequenceStep(sequence_id, start, end), **options)  # type: ignore[arg-type]


async def begun(session: WatchedSession) -> None:
    """Wait until a run has begun that nobody waited for yet."""
    assert await asyncio.to_thread(session.started.acquire, timeout=30)


def ask(served: Served, *requests: InferenceRequest) -> list[asyncio.Future[Mapping[str, Array]]]:
    """Requests under way, each queued before the next."""
    return [asyncio.ensure_future(served.scheduler.infer(request)) for request in requests]


async def hold_busy(
    served: Served, session: WatchedSession, sequence_id: int = 99
) -> asyncio.Future[Mapping[str, Array]]:
    """A run that occupies the session until released, so that a test decides what queues behind it."""
    (task,) = ask(served, step(sequence_id, start=True))
    await begun(session)
    return task
