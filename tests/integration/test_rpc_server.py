# SPDX-License-Identifier: Apache-2.0
"""A real server on a free port: errors, request ids, health, reflection, taken ports, the end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from dovetail.errors import InvalidInputError, NotFoundError, UnavailableError
from dovetail.rpc.channel import open_channel
from dovetail.rpc.lifecycle import stop_on_signals, until, write_port_file
from dovetail.rpc.server import RpcServer, ServerOptions
from dovetail.rpc.status import REQUEST_ID_METADATA_KEY, translated_errors

SECRET = "hunter2 at /srv/secret"


async def answer(request: bytes, context: Any) -> bytes:
    if request == b"known":
        raise NotFoundError("no model 'x'; there is 'digits'")
    if request == b"bug":
        raise RuntimeError(SECRET)
    if request == b"abort":
        await context.abort(grpc.StatusCode.OUT_OF_RANGE, "said so itself")
    return b"echo " + request


async def collect(requests: AsyncIterator[bytes], context: Any) -> bytes:
    return await answer(b"".join([request async for request in requests]), context)


async def spread(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield b"first"
    yield await answer(request, context)


async def converse(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield await answer(request, context)


async def written(request: bytes, context: Any) -> None:
    await context.write(b"first")
    await context.write(await answer(request, context))


HANDLERS = {
    "UnaryUnary": grpc.unary_unary_rpc_method_handler(answer),
    "StreamUnary": grpc.stream_unary_rpc_method_handler(collect),
    "UnaryStream": grpc.unary_stream_rpc_method_handler(spread),
    "StreamStream": grpc.stream_stream_rpc_method_handler(converse),
    "Written": grpc.unary_stream_rpc_method_handler(written),
}


@pytest.fixture
async def server() -> AsyncIterator[RpcServer]:
    rpc = RpcServer(ServerOptions(max_message_bytes=1 << 16))
    rpc.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", HANDLERS),))
    rpc.serve("test.Echo")
    await rpc.start("127.0.0.1:0")
    yield rpc
    await rpc.stop(0)


@pytest.fixture
async def channel(server: RpcServer) -> AsyncIterator[grpc.aio.Channel]:
    async with open_channel(f"127.0.0.1:{server.port}") as opened:
        yield opened


async def call(channel: grpc.aio.Channel, kind: str, request: bytes, **options: Any) -> list[bytes]:
    async def requests() -> AsyncIterator[bytes]:
        yield request

    path = f"/test.Echo/{kind}"
    if kind == "UnaryUnary":
        return [await channel.unary_unary(path)(request, **options)]
    if kind == "StreamUnary":
        return [await channel.stream_unary(path)(requests(), **options)]
    if kind == "StreamStream":
        return [item async for item in channel.stream_stream(path)(requests(), **options)]
    return [item async for item in channel.unary_stream(path)(request, **options)]


@pytest.mark.parametrize("kind", HANDLERS)
async def test_all_kinds_of_calls_answer(channel: grpc.aio.Channel, kind: str) -> None:
    assert (await call(channel, kind, b"hello"))[-1] == b"echo hello"


@pytest.mark.parametrize("kind", HANDLERS)
async def test_our_error_becomes_its_status_and_class(channel: grpc.aio.Channel, kind: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, kind, b"known")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    with pytest.raises(NotFoundError, match="no model 'x'; there is 'digits'"), translated_errors():
        await call(channel, kind, b"known")


@pytest.mark.parametrize("kind", HANDLERS)
async def test_unknown_exception_is_hidden_but_logged_with_the_request_id(
    channel: grpc.aio.Channel, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, kind, b"bug", metadata=(("x-request-id", "my-id-17"),))

    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "internal error, request id my-id-17" in (caught.value.details() or "")
    assert "hunter2" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    logged = [record for record in caplog.records if "rpc.bug" in record.message]
    assert len(logged) == 1
    assert "request_id=my-id-17" in logged[0].message
    assert SECRET in str(logged[0].exc_info)


async def test_servicer_that_aborts_itself_keeps_its_status(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, "UnaryUnary", b"abort")

    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.OUT_OF_RANGE, "said so itself")


async def test_one_summary_line_per_call(channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    await call(channel, "UnaryUnary", b"hello", metadata=(("x-request-id", "abc"),))

    lines = [record.message for record in caplog.records if record.message.startswith("rpc.end")]
    assert len(lines) == 1
    assert "method=/test.Echo/UnaryUnary" in lines[0]
    assert "status=OK" in lines[0]
    assert "request_id=abc" in lines[0]


async def test_bad_request_id_is_replaced(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, "UnaryUnary", b"known", metadata=(("x-request-id", "a b" * 100),))

    request_id = caught.value.trailing_metadata()[REQUEST_ID_METADATA_KEY]
    assert request_id.isalnum()
    assert len(request_id) == 32


async def test_message_over_the_limit_is_refused(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, "UnaryUnary", b"x" * (1 << 17))

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_client_that_goes_away_closes_the_servicers_generator(caplog: pytest.LogCaptureFixture) -> None:
    closed = asyncio.Event()

    async def endless(request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"tick"
                await asyncio.sleep(0.001)
        finally:
            closed.set()

    rpc = RpcServer()
    handlers = {"Endless": grpc.unary_stream_rpc_method_handler(endless)}
    rpc.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Endless", handlers),))
    await rpc.start("127.0.0.1:0")
    async with open_channel(f"127.0.0.1:{rpc.port}") as channel:
        stream = channel.unary_stream("/test.Endless/Endless")(b"")
        assert await stream.read() == b"tick"
        stream.cancel()
        await asyncio.wait_for(closed.wait(), 10)
    await rpc.stop(0)

    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_health_follows_the_server(server: RpcServer, channel: grpc.aio.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service="test.Echo")

    assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
    await server.health.enter_graceful_shutdown()
    assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_reflection_finds_services_of_a_private_pool() -> None:
    pool = descriptor_pool.DescriptorPool()
    file = descriptor_pb2.FileDescriptorProto(name="private.proto", package="private")
    file.message_type.add(name="Hidden")
    pool.AddSerializedFile(file.SerializeToString())
    rpc = RpcServer()
    rpc.serve("private.Service", pool=pool)
    await rpc.start("127.0.0.1:0")

    async def requests() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        yield reflection_pb2.ServerReflectionRequest(file_containing_symbol="private.Hidden")
        yield reflection_pb2.ServerReflectionRequest(file_containing_symbol="grpc.health.v1.Health")

    async with open_channel(f"127.0.0.1:{rpc.port}") as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        names, hidden, default = [reply async for reply in stub.ServerReflectionInfo(requests())]
    await rpc.stop(0)

    assert "private.Service" in [service.name for service in names.list_services_response.service]
    assert hidden.file_descriptor_response.file_descriptor_proto == [file.SerializeToString()]
    assert default.HasField("file_descriptor_response")


async def test_taken_port_is_named_with_a_way_out(server: RpcServer) -> None:
    second = RpcServer()

    with pytest.raises(UnavailableError) as caught:
        await second.start(f"127.0.0.1:{server.port}", advice="choose another with --address")

    assert str(caught.value) == (
        f"port {server.port} on 127.0.0.1 is already in use by another process; choose another with --address"
    )


async def test_address_of_another_machine_is_told_apart_from_a_taken_port() -> None:
    with pytest.raises(UnavailableError, match=r"203\.0\.113\.7 is not an address of this machine"):
        await RpcServer().start("203.0.113.7:0")


@pytest.mark.parametrize("address", ["7001", "host:", ":7001", "host:port", "host:70000", "::1:7001", "unix:"])
async def test_malformed_address_is_refused(address: str) -> None:
    with pytest.raises(InvalidInputError, match=r"address"):
        await RpcServer().start(address)


async def test_port_file_holds_the_real_port(tmp_path: Path) -> None:
    rpc = RpcServer()
    port = await rpc.start("127.0.0.1:0", port_file=tmp_path / "run" / "port")
    await rpc.stop(0)

    assert (tmp_path / "run" / "port").read_text() == f"{port}\n"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["port"]


def test_port_file_that_cannot_be_written_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(UnavailableError, match=r"port file .*file/port cannot be written"):
        write_port_file(tmp_path / "file" / "port", 1)


async def test_sigterm_sets_the_stop_event() -> None:
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(stop.wait(), 10)


async def test_endless_stream_ends_when_the_server_stops() -> None:
    stop = asyncio.Event()
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            closed.set()

    items = until(stop, endless(), why="the server is stopping")
    assert await anext(items) == 1
    stop.set()
    with pytest.raises(UnavailableError, match="stopping"):
        await anext(items)

    assert closed.is_set()
