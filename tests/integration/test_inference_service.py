# SPDX-License-Identifier: Apache-2.0
"""The inference service over real gRPC: statuses, streams, swaps under load, health, reflection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from dovetail.pb import oip
from tests.fakes.fake_sessions import BrokenSession, DoublingSession, FakeSession, HeldSession
from tests.fakes.inference_calls import ones, request_of, serve, values_of
from tests.fixtures_inference import RunningServer, inference_server, running_server

__all__ = ["inference_server"]

StatusCode = grpc.StatusCode
pytestmark = pytest.mark.timeout(60)


async def health_of(server: RunningServer, name: str) -> int:
    stub = health_pb2_grpc.HealthStub(server.channel)
    return int((await stub.Check(health_pb2.HealthCheckRequest(service=name))).status)


async def test_an_inference_echoes_its_id_and_says_which_artifact_answered(inference_server: RunningServer) -> None:
    serve(inference_server.repository, DoublingSession(), version=3, key="b" * 64)

    response = await inference_server.stub.ModelInfer(request_of(ones(2, 21.0), request_id="r1"))

    assert (response.id, response.model_name, response.model_version) == ("r1", "m", "3")
    assert response.parameters["dovetail_artifact"].string_param == "b" * 64
    assert values_of(response).tolist() == [[42.0, 42.0], [42.0, 42.0]]


async def test_messages_beyond_grpcs_own_limit_pass_both_ways(inference_server: RunningServer) -> None:
    serve(inference_server.repository, FakeSession())
    large = np.arange(3_000_000, dtype=np.float32).reshape(1, -1)  # 12 MB; gRPC's own limit is 4 MiB

    response = await inference_server.stub.ModelInfer(request_of(large))

    assert np.array_equal(values_of(response), large)


@pytest.mark.parametrize(
    ("request_message", "status", "text"),
    [
        (request_of(ones(), model="nope"), StatusCode.NOT_FOUND, "Request for unknown model: 'nope' is not found"),
        (request_of(ones(), version="9"), StatusCode.NOT_FOUND,
         "Request for unknown model: 'm' version 9 is not found"),
        (request_of(ones(), version="2"), StatusCode.UNAVAILABLE,
         "Request for unknown model: 'm' version 2 is not at ready state"),
        (request_of(ones(), version="-1"), StatusCode.INVALID_ARGUMENT, "failed to get model version from"),
        (request_of(ones(9)), StatusCode.INVALID_ARGUMENT, "inference request batch-size must be <= 8 for 'm'"),
        (request_of(ones(1, -1.0)), StatusCode.INTERNAL, "fake: index out of range"),
    ],
)  # fmt: skip
async def test_each_fault_has_its_status(
    inference_server: RunningServer, request_message: oip.ModelInferRequest, status: StatusCode, text: str
) -> None:
    session = BrokenSession()
    session.release(100)
    serve(inference_server.repository, session)
    inference_server.repository.begin_loading("m", 2)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await inference_server.stub.ModelInfer(request_message)

    assert caught.value.code() is status
    assert text in (caught.value.details() or "")


async def test_a_model_that_only_loads_or_failed_has_no_available_versions(inference_server: RunningServer) -> None:
    inference_server.repository.begin_loading("m", 1)
    inference_server.repository.fail_loading("m", 1, "no artifact fits: needs AVX2")

    with pytest.raises(grpc.aio.AioRpcError, match="'m' has no available versions") as caught:
        await inference_server.stub.ModelInfer(request_of(ones()))
    index = await inference_server.stub.RepositoryIndex(oip.RepositoryIndexRequest())

    assert caught.value.code() is StatusCode.NOT_FOUND
    assert (index.models[0].state, index.models[0].reason) == ("UNAVAILABLE", "no artifact fits: needs AVX2")


async def test_a_full_queue_is_unavailable_and_a_deadline_in_the_queue_costs_no_run(
    inference_server: RunningServer,
) -> None:
    session = HeldSession()
    serve(inference_server.repository, session, max_queue_rows=4)
    running = asyncio.ensure_future(inference_server.stub.ModelInfer(request_of(ones())))
    await asyncio.to_thread(session.started.wait, 30)

    with pytest.raises(grpc.aio.AioRpcError) as late:
        await inference_server.stub.ModelInfer(request_of(ones(4, 2.0)), timeout=0.3)
    while inference_server.repository.resolve("m").pending:  # the server learns of it a moment later
        await asyncio.sleep(0.01)
    queued = asyncio.ensure_future(inference_server.stub.ModelInfer(request_of(ones(4, 3.0))))
    while not inference_server.repository.resolve("m").pending:
        await asyncio.sleep(0.01)
    with pytest.raises(grpc.aio.AioRpcError, match="Exceeds maximum queue size") as full:
        await inference_server.stub.ModelInfer(request_of(ones()))
    session.release(100)
    await asyncio.gather(running, queued)

    assert late.value.code() is StatusCode.DEADLINE_EXCEEDED
    assert full.value.code() is StatusCode.UNAVAILABLE
    assert [float(run["x"][0, 0]) for run in session.runs] == [1.0, 3.0]


async def test_a_stream_answers_in_order_and_survives_bad_requests(inference_server: RunningServer) -> None:
    serve(inference_server.repository, DoublingSession())

    async def requests() -> AsyncIterator[oip.ModelInferRequest]:
        for number in range(200):
            model = "nope" if number % 50 == 7 else "m"
            yield request_of(ones(1 + number % 8, number), request_id=str(number), model=model)

    replies = [reply async for reply in inference_server.stub.ModelStreamInfer(requests())]

    assert [reply.infer_response.id for reply in replies] == [str(number) for number in range(200)]
    assert all(reply.infer_response.parameters["triton_final_response"].bool_param for reply in replies)
    failed = [int(reply.infer_response.id) for reply in replies if reply.error_message]
    assert failed == [7, 57, 107, 157]
    assert replies[7].error_message == "Request for unknown model: 'nope' is not found"
    good = [reply.infer_response for reply in replies if not reply.error_message]
    assert all((values_of(reply) == 2 * int(reply.id)).all() for reply in good)
    assert all(values_of(reply).shape == (1 + int(reply.id) % 8, 2) for reply in good)


async def test_a_stream_whose_client_asks_for_statuses_ends_with_the_first_error(
    inference_server: RunningServer,
) -> None:
    serve(inference_server.repository, DoublingSession())

    async def requests() -> AsyncIterator[oip.ModelInferRequest]:
        yield request_of(ones())
        yield request_of(ones(), model="nope")
        yield request_of(ones())

    call = inference_server.stub.ModelStreamInfer(requests(), metadata=(("triton_grpc_error", "true"),))
    first = await call.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()

    assert first.error_message == ""
    assert caught.value.code() is StatusCode.NOT_FOUND


async def test_a_cancelled_stream_takes_its_queued_requests_with_it(inference_server: RunningServer) -> None:
    session = HeldSession()
    model = serve(inference_server.repository, session)
    call = inference_server.stub.ModelStreamInfer()
    await call.write(request_of(ones()))
    await asyncio.to_thread(session.started.wait, 30)
    for _ in range(19):
        await call.write(request_of(ones()))
    while model.pending < 19:
        await asyncio.sleep(0.01)

    call.cancel()
    while model.pending:
        await asyncio.sleep(0.01)
    session.release(100)
    await inference_server.repository.unload("m")

    assert session.batch_rows == [1]


async def test_swapping_artifacts_under_load_loses_nothing_and_closes_the_old_ones() -> None:
    sessions = [DoublingSession() for _ in range(6)]
    async with running_server() as server:
        serve(server.repository, sessions[0], key=f"{0:064x}")
        stop = asyncio.Event()

        async def ask_until_stopped(seed: int) -> list[tuple[float, float, str]]:
            answers = []
            number = 0
            while not stop.is_set():
                number += 1
                value = float(seed * 10_000 + number)
                response = await server.stub.ModelInfer(request_of(ones(1 + number % 8, value)))
                same = bool((values_of(response) == 2 * value).all())
                answers.append((value, same, response.parameters["dovetail_artifact"].string_param))
            return answers

        clients = [asyncio.create_task(ask_until_stopped(seed)) for seed in range(8)]
        for number, session in enumerate(sessions[1:], start=1):
            before = len(sessions[number - 1].runs)
            while len(sessions[number - 1].runs) < before + 5:  # each artifact answers some
                await asyncio.sleep(0.01)
            serve(server.repository, session, key=f"{number:064x}")
            await server.repository.drained()
            assert sessions[number - 1].closed
            assert server.repository.ready()
        stop.set()
        answers = [answer for client in clients for answer in await client]

    assert [answer for answer in answers if not answer[1]] == []
    assert len({key for _, _, key in answers}) >= 5
    assert all(session.closed for session in sessions)


async def test_requests_without_a_version_get_the_newest_that_serves(inference_server: RunningServer) -> None:
    for version in (1, 2):
        serve(inference_server.repository, FakeSession(), version=version)
    newest = await inference_server.stub.ModelInfer(request_of(ones()))
    metadata = await inference_server.stub.ModelMetadata(oip.ModelMetadataRequest(name="m"))
    await inference_server.repository.unload("m", 2)
    older = await inference_server.stub.ModelInfer(request_of(ones()))

    assert (newest.model_version, older.model_version) == ("2", "1")
    assert list(metadata.versions) == ["1", "2"]
    assert metadata.properties["dovetail_recipe"] == "fake-fp32"


async def test_health_and_readiness_follow_the_models(inference_server: RunningServer) -> None:
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    stub = inference_server.stub
    assert await health_of(inference_server, "") == serving

    inference_server.repository.begin_loading("m", 1)
    while await health_of(inference_server, "") != not_serving:
        await asyncio.sleep(0.01)
    assert not (await stub.ServerReady(oip.ServerReadyRequest())).ready
    assert (await stub.ServerLive(oip.ServerLiveRequest())).live
    assert not (await stub.ModelReady(oip.ModelReadyRequest(name="m"))).ready

    serve(inference_server.repository, FakeSession())
    while await health_of(inference_server, oip.SERVICE) != serving:
        await asyncio.sleep(0.01)
    assert await health_of(inference_server, "m") == serving
    assert (await stub.ServerReady(oip.ServerReadyRequest())).ready
    assert (await stub.ModelReady(oip.ModelReadyRequest(name="m", version="1"))).ready

    await inference_server.repository.unload("m")
    while await health_of(inference_server, "m") != not_serving:
        await asyncio.sleep(0.01)
    assert (await stub.ServerReady(oip.ServerReadyRequest())).ready  # unloaded on purpose: not missed


async def test_reflection_describes_the_service_without_the_default_pool(inference_server: RunningServer) -> None:
    async def ask(request: reflection_pb2.ServerReflectionRequest) -> reflection_pb2.ServerReflectionResponse:
        stub = reflection_pb2_grpc.ServerReflectionStub(inference_server.channel)
        return await anext(aiter(stub.ServerReflectionInfo(iter([request]))))

    listed = await ask(reflection_pb2.ServerReflectionRequest(list_services=""))
    described = await ask(reflection_pb2.ServerReflectionRequest(file_containing_symbol=oip.SERVICE))

    names = [service.name for service in listed.list_services_response.service]
    files = [FileDescriptorProto.FromString(data) for data in described.file_descriptor_response.file_descriptor_proto]
    assert oip.SERVICE in names
    assert "grpc.health.v1.Health" in names
    assert {file.name for file in files} == {"grpc_service.proto", "model_config.proto"}
