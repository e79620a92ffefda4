# SPDX-License-Identifier: Apache-2.0
"""What a front end does with each RPC: inferences go through the pipe, the rest to the main process's own server.

Nothing is parsed here, so nothing is known here about messages: any RPC that the main process has, or will have, is
passed on as bytes, health and reflection included. Errors of inferences become statuses by the same interceptor as in
a server without front ends; those of other RPCs were made by it in the main process, and pass as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio

from dovetail.pb import oip
from dovetail.rpc.interceptor import ErrorInterceptor
from dovetail.rpc.status import REQUEST_ID_METADATA_KEY
from runtime_svc.front_ends.calls import Calls, StreamCall
from runtime_svc.protocol.stream import STATUS_HEADER

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

INFER = oip.METHODS["ModelInfer"].path
STREAM_INFER = oip.METHODS["ModelStreamInfer"].path
_OWN_HEADERS = ("grpc-", "user-agent", ":")
"""Metadata that each connection makes for itself."""

_SERVICES_WITH_STREAMS = ("/grpc.reflection.",)
"""Beside inferences, only here do callers send several messages. Elsewhere the one message goes out with the call: a
write of its own fails if the call has ended by then, and grpc.aio puts that in place of the status that ended it."""


class InferenceErrors(grpc.aio.ServerInterceptor):
    """`ErrorInterceptor` around the inferences; the other RPCs have had theirs."""

    def __init__(self) -> None:
        self._inner = ErrorInterceptor()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wrap the method that will serve the call."""
        if handler_call_details.method in (INFER, STREAM_INFER):
            return await self._inner.intercept_service(continuation, handler_call_details)
        return await continuation(handler_call_details)


class Handlers(grpc.GenericRpcHandler):
    """Handlers of every RPC.

    Args:
        calls: Inferences.
        channel: To the main process's own server, for the rest.
    """

    def __init__(self, calls: Calls, channel: grpc.aio.Channel) -> None:
        self._channel = channel

        async def model_infer(message: bytes, context: Context) -> bytes:
            return await calls.ask(message, context.time_remaining())

        async def model_stream_infer(requests: AsyncIterator[bytes], context: Context) -> None:
            metadata = [(str(key), value) for key, value in context.invocation_metadata() or ()]
            stream = calls.open(context.time_remaining(), as_status=STATUS_HEADER in metadata)
            try:
                await _exchange(stream, context)
            finally:
                stream.close()

        self._inferences: dict[str, Handler] = {
            INFER: grpc.unary_unary_rpc_method_handler(model_infer),
            STREAM_INFER: grpc.stream_stream_rpc_method_handler(model_stream_infer),
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        """The handler of a method, whatever it is."""
        method = handler_call_details.method
        known = self._inferences.get(method)
        if known is not None:
            return known
        if method.startswith(_SERVICES_WITH_STREAMS):
            return grpc.stream_stream_rpc_method_handler(_Passage(self._channel.stream_stream(method)).serve)
        return grpc.unary_stream_rpc_method_handler(_Passage(self._channel.unary_stream(method)).serve)


async def _exchange(stream: StreamCall, context: Context) -> None:
    """Pass the messages of a stream both ways until it has ended."""

    async def read() -> None:
        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                await stream.send(message)
        except grpc.aio.InternalError:
            stream.fail()
        else:
            stream.end()

    reading = asyncio.ensure_future(read())
    try:
        while (reply := await stream.receive()) is not None:
            await context.write(reply)
            stream.sent(reply)
    except grpc.aio.InternalError:  # nothing can be written any more: the client is gone
        raise asyncio.CancelledError from None
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


class _Passage:
    """Passes the calls of one method on. One answer, on the wire, is a stream of one."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    async def serve(self, given: bytes | AsyncIterator[bytes], context: Context) -> None:
        """Serve one.

        Args:
            given: What the caller sends: a message, or several.
            context: Of the call.
        """
        metadata = [pair for pair in context.invocation_metadata() or () if not pair[0].startswith(_OWN_HEADERS)]
        call = self._call(given, timeout=context.time_remaining(), metadata=metadata)
        try:
            async for reply in call:
                await context.write(reply)
            status, text, trailers = await call.code(), await call.details(), await call.trailing_metadata()
        except grpc.aio.AioRpcError as error:
            status, text, trailers = error.code(), error.details() or "", error.trailing_metadata()
        finally:
            call.cancel()
        passed = tuple((key, value) for key, value in trailers or ())
        if status is not grpc.StatusCode.OK:
            if status is grpc.StatusCode.UNAVAILABLE and REQUEST_ID_METADATA_KEY not in dict(passed):
                text = "the server is stopping; try again"  # said by gRPC, with an address that is nobody's business
            await context.abort(status, text or "", trailing_metadata=passed)
        context.set_trailing_metadata(passed)
