# SPDX-License-Identifier: Apache-2.0
"""The transport `grpc.aio`: ModelInfer and ModelStreamInfer with messages as bytes, in and out of `InferenceCore`.

No serialiser is registered, so gRPC hands over what came and sends what it is given. The other RPCs of the service are
ordinary methods with protobuf messages. Another transport would be a file beside this one.

Source: gRPC, HTTP/2 mapping (a message is at most 2^32 - 1 bytes; its libraries take 2^31 - 1); Triton's header
`triton_grpc_error`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
import grpc.aio

from dovetail.errors import DovetailError
from dovetail.pb import oip
from dovetail.rpc.status import public_text
from runtime_svc.protocol.inference import InferenceCore
from runtime_svc.protocol.response_encoding import in_stream, stream_error
from runtime_svc.protocol.stream import AnyReplies, Exchange, OneReply, ReplyStream
from runtime_svc.protocol.wire import MalformedMessageError, WireRequest, scan_request

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

MAX_MESSAGE_BYTES = (1 << 31) - 1
"""What gRPC's libraries can receive; it refuses more with RESOURCE_EXHAUSTED before anything is read of it."""

_STATUS_HEADER = ("triton_grpc_error", "true")  # a client that sends it wants a stream's first error as its status


def inference_handler(core: InferenceCore) -> grpc.GenericRpcHandler:
    """Handler for the RPCs that infer; register it before those of the rest of the service."""

    async def model_infer(message: bytes, context: Context) -> bytes:
        return b"".join(await core.answer(message, context.time_remaining()))

    async def model_stream_infer(requests: AsyncIterator[bytes], context: Context) -> None:
        await _Stream(core, context).serve()

    return grpc.method_handlers_generic_handler(
        oip.SERVICE,
        {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(model_infer),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(model_stream_infer),
        },
    )


class _Stream:
    """One call of ModelStreamInfer."""

    def __init__(self, core: InferenceCore, context: Context) -> None:
        self._core = core
        self._context = context
        metadata = context.invocation_metadata() or ()
        self._as_status = _STATUS_HEADER in [(str(key), value) for key, value in metadata]

    async def serve(self) -> None:
        """Answer until the client is done."""
        try:
            await ReplyStream(self._begin, self._context.write).run(self._read)
        except grpc.aio.InternalError:  # nothing can be written any more: the client is gone
            raise asyncio.CancelledError from None

    async def _read(self) -> bytes | None:
        message = await self._context.read()
        return None if message is grpc.aio.EOF else message

    def _begin(self, message: bytes) -> Exchange:
        wire = scan_request(message)
        if self._core.is_decoupled(wire):
            return AnyReplies(self._replies(wire, len(message)))
        return OneReply(self._reply(wire, len(message)))

    async def _reply(self, wire: WireRequest, size_bytes: int) -> bytes:
        try:
            self._core.admit(size_bytes)
            try:
                pieces = await self._core.answer_wire(wire, self._context.time_remaining(), final=True)
            finally:
                self._core.release(size_bytes)
        except DovetailError as error:
            return self._error_reply(wire, error)
        return b"".join(in_stream(pieces))

    async def _replies(self, wire: WireRequest, size_bytes: int) -> AsyncGenerator[bytes, None]:
        try:
            self._core.admit(size_bytes)
            try:
                async with aclosing(self._core.answers(wire, self._context.time_remaining())) as answers:
                    async for pieces in answers:
                        yield b"".join(in_stream(pieces))
            finally:
                self._core.release(size_bytes)
        except DovetailError as error:
            yield self._error_reply(wire, error)

    def _error_reply(self, wire: WireRequest, error: DovetailError) -> bytes:
        if self._as_status or isinstance(error, MalformedMessageError):
            raise error
        return stream_error(wire.request_id, public_text(str(error)))
