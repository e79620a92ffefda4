# SPDX-License-Identifier: Apache-2.0
"""A server behind two front ends, over real gRPC: what clients see is what they see without, also where one dies."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest

from dovetail.errors import InvalidInputError, UnavailableError
from dovetail.pb import oip
from runtime_svc.front_ends.options import FrontEndOptions
from runtime_svc.front_ends.process import FrontEndProcess
from runtime_svc.front_ends.server import FrontedServer
from runtime_svc.log_control import LogControl
from runtime_svc.protocol.inference import InferenceCore
from runtime_svc.repository import Repository
from runtime_svc.server import start_inference_server
from tests.fakes.fake_sessions import BrokenSession, DoublingSession, HeldSession
from tests.fakes.inference_calls import call_of, fill, read_late, serve, settled, values_of
from tests.fixtures_inference import RunningServer, running_server

StatusCode = grpc.StatusCode
pytestmark = pytest.mark.timeout(120)
REPOSITORY = Path(__file__).parents[2]
UNLIMITED = [
    ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0),
]  # fmt: skip


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    """With two front ends and no model."""
    async with running_server(front_ends=FrontEndOptions(2), logs=LogControl(logging.getLogger("none"))) as running:
        yield running


def front_ends(server: RunningServer) -> tuple[FrontEndProcess, ...]:
    assert isinstance(server.rpc, FrontedServer)
    assert server.rpc.front_ends is not None
    return server.rpc.front_ends.running


def pids(server: RunningServer) -> list[int]:
    return [process.pid for process in front_ends(server)]


async def stubs(server: RunningServer, stack: AsyncExitStack, count: int) -> list[oip.Stub]:
    """Clients with a connection each, which the kernel spreads over the front ends."""
    channels = [
        await stack.enter_async_context(grpc.aio.insecure_channel(server.address, options=UNLIMITED))
        for _ in range(count)
    ]
    return [oip.Stub(channel) for channel in channels]


async def test_hundreds_of_calls_at_once_over_many_connections_get_their_own_answers(server: RunningServer) -> None:
    serve(server.repository, DoublingSession())

    async def unary(stub: oip.Stub, number: int) -> None:
        reply = await stub.ModelInfer(call_of(float(number), columns=1 + number % 7))
        assert values_of(reply).tolist() == [[2.0 * number] * (1 + number % 7)]

    async def streamed(stub: oip.Stub, first: int) -> None:
        numbers = range(first, first + 100)
        call = stub.ModelStreamInfer(call_of(float(number)) for number in numbers)
        assert [values_of(reply.infer_response)[0, 0] async for reply in call] == [2.0 * number for number in numbers]

    async with AsyncExitStack() as stack:
        clients = await stubs(server, stack, 8)
        await asyncio.gather(
            *(unary(stub, number + 1000 * place) for place, stub in enumerate(clients) for number in range(60)),
            *(streamed(stub, 1000 * place) for place, stub in enumerate(clients)),
        )


async def test_large_messages_pass_unchanged_both_ways(server: RunningServer) -> None:
    serve(server.repository, DoublingSession())
    values = np.arange(10 << 18, dtype=np.float32).reshape(1, -1)  # 10 MiB
    request = oip.ModelInferRequest(model_name="m", raw_input_contents=[values.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=values.shape)

    unary = await server.stub.ModelInfer(request)
    streamed = [reply async for reply in server.stub.ModelStreamInfer([request] * 3)]

    for reply in (unary, *(reply.infer_response for reply in streamed)):
        assert np.array_equal(values_of(reply), values * 2)
    assert len(streamed) == 3


async def test_errors_have_the_statuses_texts_and_trailers_of_a_server_without_front_ends(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def told(running: RunningServer, request: oip.ModelInferRequest) -> tuple[object, ...]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.stub.ModelInfer(request, metadata=(("x-request-id", "r-1"),))
        return caught.value.code(), caught.value.details(), tuple(caught.value.trailing_metadata())

    requests = [oip.ModelInferRequest(model_name="nobody"), call_of(-1.0), call_of(rows=9)]
    async with running_server() as plain:
        for running in (server, plain):
            session = BrokenSession(ZeroDivisionError("secret"))
            session.release(1000)
            serve(running.repository, session)
        here, there = [[await told(running, request) for request in requests] for running in (server, plain)]
        monkeypatch.setattr(InferenceCore, "admit", lambda core, size: 1 / 0)  # a bug of ours
        bug_here, bug_there = [await told(running, call_of()) for running in (server, plain)]

    assert here == there
    assert bug_here == bug_there
    assert bug_here[:2] == (
        StatusCode.INTERNAL,
        "internal error, request id r-1: the server's log has the details under this id",
    )


async def test_a_full_queue_says_when_to_try_again(server: RunningServer) -> None:
    session = HeldSession()
    model = serve(server.repository, session, max_queue_rows=1)
    running = await fill(server.stub, model, session)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await server.stub.ModelInfer(call_of())
    session.release(100)
    await asyncio.gather(*running)

    assert caught.value.code() is StatusCode.UNAVAILABLE
    assert int(caught.value.trailing_metadata()["grpc-retry-pushback-ms"]) > 0


async def test_cancelled_and_late_calls_leave_the_queue_and_are_never_run(server: RunningServer) -> None:
    session = HeldSession()
    model = serve(server.repository, session)
    first = asyncio.ensure_future(server.stub.ModelInfer(call_of()))
    await asyncio.to_thread(session.started.wait, 30)
    cancelled = server.stub.ModelInfer(call_of())
    stream = server.stub.ModelStreamInfer([call_of(), call_of()])
    waiting = [asyncio.ensure_future(cancelled), asyncio.ensure_future(stream.read())]
    await settled(model, 3)

    cancelled.cancel()
    stream.cancel()
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await server.stub.ModelInfer(call_of(), timeout=0.2)
    await settled(model, 0)
    session.release(100)
    await first
    await asyncio.gather(*waiting, return_exceptions=True)

    assert late.value.code() is StatusCode.DEADLINE_EXCEEDED
    assert sum(session.batch_rows) == 1


async def test_a_stream_whose_client_does_not_read_holds_a_bounded_number_of_requests(server: RunningServer) -> None:
    serve(server.repository, DoublingSession())
    megabyte = call_of(1.0, columns=250_000)
    sent_while_unread, replies = await read_late(server.stub, megabyte, 250)

    assert sent_while_unread < 200
    assert replies == 250


async def test_a_killed_front_end_costs_its_own_clients_their_calls_and_is_replaced(server: RunningServer) -> None:
    session = HeldSession()
    serve(server.repository, session)
    async with AsyncExitStack() as stack:
        clients = await stubs(server, stack, 24)
        calls = [asyncio.ensure_future(stub.ModelInfer(call_of())) for stub in clients]
        victim, other = pids(server)
        async with asyncio.timeout(30):
            while sum(process.link.calls for process in front_ends(server)) < 24:
                await asyncio.sleep(0.01)

            os.kill(victim, signal.SIGKILL)
            while not any(call.done() for call in calls):
                await asyncio.sleep(0.01)
            while len(pids(server)) < 2 or victim in pids(server):
                await asyncio.sleep(0.01)
        session.release(1000)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        again = await asyncio.gather(*(stub.ModelInfer(call_of(3.0), wait_for_ready=True) for stub in clients))

    failures = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert {failure.code() for failure in failures} == {StatusCode.UNAVAILABLE}
    assert 0 < len(failures) < 24, "the kernel gives all 24 connections to one of two once in ten million times"
    assert all(values_of(reply)[0, 0] == 1.0 for reply in outcomes if not isinstance(reply, BaseException))
    assert all(values_of(reply)[0, 0] == 3.0 for reply in again)
    assert other in pids(server)


async def test_what_runs_is_finished_when_the_server_stops(server: RunningServer) -> None:
    session = HeldSession()
    serve(server.repository, session)
    running = asyncio.ensure_future(server.stub.ModelInfer(call_of(4.0)))
    await asyncio.to_thread(session.started.wait, 30)

    stopping = asyncio.ensure_future(server.rpc.stop(grace_s=30.0))
    async with asyncio.timeout(30), grpc.aio.insecure_channel(server.address, options=UNLIMITED) as channel:
        while True:  # until new clients are turned away
            try:
                await oip.Stub(channel).ServerLive(oip.ServerLiveRequest())
            except grpc.aio.AioRpcError as error:
                refusal = error.code()
                break
    session.release(1)

    assert values_of(await running)[0, 0] == 4.0
    assert refusal is StatusCode.UNAVAILABLE
    await stopping
    assert pids(server) == []


async def test_a_method_that_there_is_not_is_unimplemented_however_many_ask_for_it(server: RunningServer) -> None:
    async def guess() -> tuple[StatusCode, str | None]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await server.channel.unary_unary("/inference.GRPCInferenceService/Guess")(b"")
        return caught.value.code(), caught.value.details()

    told = {outcome for _ in range(10) for outcome in await asyncio.gather(*(guess() for _ in range(20)))}

    assert told == {(StatusCode.UNIMPLEMENTED, "Method not found!")}


@pytest.mark.timeout(300)
def test_the_conformance_suite_passes_through_front_ends() -> None:
    """A part of it; all of it takes a minute: `pytest tests/conformance --front-ends 2`."""
    files = [f"tests/conformance/test_conformance_{name}.py" for name in ("errors", "streams", "decoupled")]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "--front-ends", "2"]

    done = subprocess.run(argv, cwd=REPOSITORY, env=environ, capture_output=True, text=True, timeout=280, check=False)

    assert done.returncode == 0, done.stdout[-4000:]
    assert int(done.stdout.rpartition(" passed")[0].split()[-1]) > 180


async def started_with(front_ends: int, address: str = "127.0.0.1:0") -> None:
    await start_inference_server(Repository(), address=address, front_ends=FrontEndOptions(front_ends))


async def test_where_front_ends_cannot_be_started_the_server_says_why_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(InvalidInputError, match="host:port"):
        await started_with(1, "unix:/nowhere")

    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UnavailableError, match="ended while it was started"):
        await started_with(2)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(UnavailableError, match="cannot be started: No such file"):
        await started_with(1)
    assert not list(tmp_path.iterdir())

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long" * 25)))
    (tmp_path / ("long" * 25)).mkdir()
    with pytest.raises(UnavailableError, match="TMPDIR"):
        await started_with(1)
