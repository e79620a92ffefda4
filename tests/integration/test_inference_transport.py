# SPDX-License-Identifier: Apache-2.0
"""Bytes on the wire to the inference server: malformed ones, too many, back-pressure, and what one stream may hold."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from multiprocessing.shared_memory import SharedMemory

import grpc
import grpc.aio
import numpy as np
import pytest

from dovetail.errors import BusyError, OverLimitError
from dovetail.pb import oip
from dovetail.tensor import TensorSpec
from runtime_svc.model_facts import ModelFacts
from runtime_svc.protocol import response_encoding
from runtime_svc.protocol.inference import InferenceCore
from runtime_svc.protocol.requested_outputs import OutputForm
from runtime_svc.protocol.response_encoding import ResponseEncoder
from runtime_svc.repository import Repository
from runtime_svc.shared_memory import SharedMemoryRegions
from runtime_svc.trace import Tracer
from tests.fakes.fake_sessions import DoublingSession, HeldSession
from tests.fakes.inference_calls import call_of, fill, read_late, serve
from tests.fixtures_inference import RunningServer, inference_server

__all__ = ["inference_server"]

StatusCode = grpc.StatusCode
pytestmark = pytest.mark.timeout(60)
MALFORMED = (b"\xff\xff", b"\x3a\x7f", b"\x0a\x02\xff\xff", b"\x2a\x02\x0a\x7f")


def raw_call(channel: grpc.aio.Channel) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
    return channel.unary_unary(oip.METHODS["ModelInfer"].path)


@pytest.mark.parametrize("message", MALFORMED)
async def test_what_is_no_request_is_internal_and_costs_the_next_one_nothing(
    inference_server: RunningServer, message: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    serve(inference_server.repository, DoublingSession())

    with caplog.at_level(logging.WARNING), pytest.raises(grpc.aio.AioRpcError) as caught:
        await raw_call(inference_server.channel)(message)

    assert caught.value.code() is StatusCode.INTERNAL
    assert "cannot be parsed" in (caught.value.details() or "")
    assert "rpc.bug" not in caplog.text
    assert (await inference_server.stub.ModelInfer(call_of())).outputs


@pytest.mark.parametrize("message", MALFORMED)
async def test_in_a_stream_it_ends_the_stream_after_the_replies_before_it(
    inference_server: RunningServer, message: bytes
) -> None:
    serve(inference_server.repository, DoublingSession())
    call = inference_server.channel.stream_stream(oip.METHODS["ModelStreamInfer"].path)()
    await call.write(call_of().SerializeToString())
    first = oip.ModelStreamInferResponse.FromString(await call.read())

    await call.write(message)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()

    assert first.infer_response.outputs
    assert caught.value.code() is StatusCode.INTERNAL


async def test_a_full_queue_says_when_to_try_again(inference_server: RunningServer) -> None:
    session = HeldSession()
    model = serve(inference_server.repository, session, max_queue_rows=1)
    running = await fill(inference_server.stub, model, session)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await inference_server.stub.ModelInfer(call_of())
    session.release(100)
    await asyncio.gather(*running)

    assert caught.value.code() is StatusCode.UNAVAILABLE
    assert "Exceeds maximum queue size" in (caught.value.details() or "")
    assert int(caught.value.trailing_metadata()["grpc-retry-pushback-ms"]) > 0


async def test_grpcs_own_retries_get_through_a_queue_that_was_full(inference_server: RunningServer) -> None:
    session = HeldSession()
    model = serve(inference_server.repository, session, max_queue_rows=1)
    running = await fill(inference_server.stub, model, session)
    # The policy alone would wait for minutes; what the server says is sooner.
    policy = {
        "maxAttempts": 5,
        "initialBackoff": "100s",
        "maxBackoff": "200s",
        "backoffMultiplier": 1,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    service = {"methodConfig": [{"name": [{}], "retryPolicy": policy}]}
    options = [("grpc.service_config", json.dumps(service)), ("grpc.enable_retries", 1)]

    async with grpc.aio.insecure_channel(inference_server.address, options=options) as channel:
        patient = asyncio.ensure_future(oip.Stub(channel).ModelInfer(call_of(5.0), timeout=50))
        while not model.statistics.snapshot().fail.count:  # it was turned away
            await asyncio.sleep(0.01)
        session.release(100)
        reply = await patient
    await asyncio.gather(*running)

    assert np.frombuffer(reply.raw_output_contents[0], "<f4").tolist() == [5.0, 5.0]


def test_messages_beyond_the_bound_are_turned_away_before_they_are_read() -> None:
    core = InferenceCore(Repository(), regions=SharedMemoryRegions(), tracer=Tracer(), max_held_bytes=100)

    core.admit(1000)  # alone, any size
    with pytest.raises(BusyError, match="1000 bytes are being served"):
        core.admit(1)
    core.release(1000)
    core.admit(60)
    core.admit(40)


def test_what_no_message_can_hold_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_encoding, "MAX_REPLY_BYTES", (1 << 20) + 100)
    spec = TensorSpec("y", "FP32", (-1,))
    encoder = ResponseEncoder(ModelFacts("m", 1, (), (spec,), 0, "a" * 64, "r", "e"))

    with pytest.raises(OverLimitError, match="have them written to shared memory"):
        encoder.encode("", {"y": np.ones(50, np.float32)}, {"y": OutputForm()})


async def test_a_stream_whose_client_does_not_read_holds_a_bounded_number_of_requests(
    inference_server: RunningServer,
) -> None:
    session = DoublingSession()
    serve(inference_server.repository, session)
    sent_while_unread, replies = await read_late(inference_server.stub, call_of(1.0, columns=250_000), 400)  # 1 MB each

    assert sent_while_unread < 300
    assert replies == 400


async def test_a_region_that_is_gone_is_gone_for_requests_that_were_seen_before(
    inference_server: RunningServer,
) -> None:
    serve(inference_server.repository, DoublingSession())
    stub, request = inference_server.stub, call_of()
    request.ClearField("raw_input_contents")
    for key, value in (("region", "r"), ("byte_size", 8)):
        parameter = request.inputs[0].parameters[f"shared_memory_{key}"]
        setattr(parameter, "string_param" if key == "region" else "int64_param", value)
    memories = [SharedMemory(f"dovetail_{uuid.uuid4().hex}", create=True, size=8) for _ in range(2)]
    try:
        answers = []
        for number, memory in enumerate(memories):
            memory.buf[:8] = np.full(2, number + 1.0, np.float32).tobytes()
            await stub.SystemSharedMemoryRegister(
                oip.SystemSharedMemoryRegisterRequest(name="r", key=memory.name, byte_size=8)
            )
            answers += [(await stub.ModelInfer(request)).raw_output_contents[0] for _ in range(2)]
            await stub.SystemSharedMemoryUnregister(oip.SystemSharedMemoryUnregisterRequest(name="r"))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ModelInfer(request)
            assert caught.value.code() is StatusCode.NOT_FOUND
    finally:
        for memory in memories:
            memory.close()
            memory.unlink()

    assert [np.frombuffer(answer, "<f4").tolist() for answer in answers] == [[2.0, 2.0]] * 2 + [[4.0, 4.0]] * 2
