# SPDX-License-Identifier: Apache-2.0
"""A served model over a session that a test holds, and requests to it: for tests of queues and batches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from dovetail.clock import Clock
from dovetail.tensor import Array
from runtime_svc.configuration.serving_config import ServingConfig
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.served_model import ServedModel
from tests.fakes.fake_sessions import FakeSession, HeldSession, facts_for

Answer = asyncio.Task[Mapping[str, Array]]


def rows_of(count: int, value: float = 0.0, width: int = 1) -> Array:
    """So many rows of one value."""
    return np.full((count, width), value, dtype=np.float32)


def request_of(values: Array, **wishes: Any) -> InferenceRequest:
    """A request with these rows of `x`."""
    return InferenceRequest({"x": values}, rows=values.shape[0], **wishes)


@asynccontextmanager
async def serving(
    *sessions: FakeSession,
    config: ServingConfig | None = None,
    max_batch_size: int = 8,
    clock: Clock | None = None,
) -> AsyncIterator[ServedModel]:
    """A model over these sessions, whose runs are let go at the end."""
    facts = facts_for(sessions[0], max_batch_size=max_batch_size)
    model = ServedModel.start(facts, sessions, config, clock)
    try:
        yield model
    finally:
        for session in sessions:
            if isinstance(session, HeldSession):
                session.release(1000)
        await model.close()


async def occupy(model: ServedModel, session: HeldSession) -> Answer:
    """Have the engine busy with one request of a width that nobody else has."""
    task = asyncio.create_task(model.infer(request_of(rows_of(1, width=99))))
    await asyncio.to_thread(session.started.wait, 30)
    return task


async def occupy_all(model: ServedModel, sessions: Sequence[HeldSession]) -> list[Answer]:
    """Have every engine busy with one such request."""
    tasks = [asyncio.create_task(model.infer(request_of(rows_of(1, width=99 + n)))) for n in range(len(sessions))]
    for session in sessions:
        await asyncio.to_thread(session.started.wait, 30)
    return tasks


async def queue_up(model: ServedModel, *requests: InferenceRequest) -> list[Answer]:
    """Start the requests in order and return once all are in the queue."""
    tasks = [asyncio.create_task(model.infer(request)) for request in requests]
    await asyncio.sleep(0)  # each task runs up to its wait
    return tasks


def values_of(answers: Sequence[Mapping[str, Array]]) -> list[float]:
    """First element of each answer."""
    return [float(answer["y"].flat[0]) for answer in answers]
