# SPDX-License-Identifier: Apache-2.0
"""A model to serve, and requests to it as messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc.aio
import numpy as np

from dovetail.pb import oip
from dovetail.tensor import Array
from runtime_svc.configuration.serving_config import ServingConfig
from runtime_svc.repository import Repository
from runtime_svc.served_model import ServedModel
from tests.fakes.fake_sessions import FakeSession, HeldSession, facts_for


def serve(
    repository: Repository, session: FakeSession, *, version: int = 1, key: str = "a" * 64, max_queue_rows: int = 4096
) -> ServedModel:
    """Install a model `m` over a session."""
    facts = facts_for(session, version=version, artifact_key=key)
    model = ServedModel.start(facts, [session], ServingConfig(max_queue_rows=max_queue_rows))
    repository.install(model)
    return model


def request_of(values: Array, *, request_id: str = "", model: str = "m", version: str = "") -> oip.ModelInferRequest:
    """FP32 values for input `x`."""
    request = oip.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    request.inputs.add(name="x", datatype="FP32", shape=values.shape)
    request.raw_input_contents.append(values.astype("<f4").tobytes())
    return request


def call_of(value: float = 1.0, *, rows: int = 1, columns: int = 2) -> oip.ModelInferRequest:
    """A request whose values are all the same."""
    return request_of(np.full((rows, columns), value, dtype=np.float32))


def ones(rows: int = 1, value: float = 1.0) -> Array:
    """Rows of two equal values."""
    return np.full((rows, 2), value, dtype=np.float32)


def values_of(response: oip.ModelInferResponse) -> Array:
    """A reply's only output."""
    return np.frombuffer(response.raw_output_contents[0], "<f4").reshape(tuple(response.outputs[0].shape))


async def fill(
    stub: oip.Stub, model: ServedModel, session: HeldSession
) -> list[asyncio.Future[oip.ModelInferResponse]]:
    """One request runs and one waits, until the session is released: a queue of one row is full."""
    running = [asyncio.ensure_future(stub.ModelInfer(call_of()))]
    await asyncio.to_thread(session.started.wait, 30)
    running.append(asyncio.ensure_future(stub.ModelInfer(call_of())))
    await settled(model, 1)
    return running


async def settled(model: ServedModel, pending: int) -> None:
    """Until so many requests wait."""
    async with asyncio.timeout(30):
        while model.pending != pending:
            await asyncio.sleep(0.01)


async def read_late(stub: oip.Stub, request: oip.ModelInferRequest, count: int) -> tuple[int, int]:
    """Send a request so often on one stream, and read only once no more can be sent.

    Returns:
        How many could be sent by then, and how many replies came in the end.
    """
    sent = 0

    async def requests() -> AsyncIterator[oip.ModelInferRequest]:
        nonlocal sent
        for number in range(count):
            sent = number + 1
            yield request

    call = stub.ModelStreamInfer(requests())
    await call.read()
    last = -1
    while sent != last:  # until it stands still
        last = sent
        await asyncio.sleep(0.3)
    sent_while_unread, replies = sent, 1
    while (reply := await call.read()) is not grpc.aio.EOF:
        assert not reply.error_message
        replies += 1
    return sent_while_unread, replies
