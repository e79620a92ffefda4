# SPDX-License-Identifier: Apache-2.0
"""The transport `grpc.aio`: ModelInfer and ModelStreamInfer with messages as bytes, in and out of `InferenceCore`.

No serialiser is registered, so gRPC hands over what came and sends what it is given. The other RPCs of the service are
ordinary methods with protobuf messages. Another transport is a file beside this one: `runtime_svc.front_ends.link` is.

Source: gRPC, HTTP/2 mapping (a message is at most 2^32 - 1 bytes; its libraries take 2^31 - 1).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc
import grpc.aio

from dovetail.pb import oip
from runtime_svc.protocol.infer_stream import InferStream
from runtime_svc.protocol.inference import InferenceCore
from runtime_svc.protocol.stream import STATUS_HEADER

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

MAX_MESSAGE_BYTES = (1 << 31) - 1
"""What gRPC's libraries can receive; it refuses more with RESOURCE_EXHAUSTED before anything is read of it."""


def inference_handler(core: InferenceCore) -> grpc.GenericRpcHandler:
    """Handler for the RPCs that infer; register it before those of the rest of the service."""

    async def model_infer(message: bytes, context: Context) -> bytes:
        return b"".join(await core.answer(message, context.time_remaining()))

    async def model_stream_infer(requests: AsyncIterator[bytes], context: Context) -> None:
        metadata = [(str(key), value) for key, value in context.invocation_metadata() or ()]
        stream = InferStream(core, context.time_remaining, as_status=STATUS_HEADER in metadata)

        async def read() -> bytes | None:
            message = await context.read()
            return None if message is grpc.aio.EOF else message

        try:
            await stream.run(read, context.write)
        except grpc.aio.InternalError:  # nothing can be written any more: the client is gone
            raise asyncio.CancelledError from None

    return grpc.method_handlers_generic_handler(
        oip.SERVICE,
        {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(model_infer),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(model_stream_infer),
        },
    )
