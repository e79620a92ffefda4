# SPDX-License-Identifier: Apache-2.0
"""Messages of FetchChunks put together without a protobuf object, because they carry nearly all bytes of the mesh.

Building and serialising a message copies its bytes twice more than the wire needs, and for messages of some 100 KiB
that is most of what a server does. What is made here is an ordinary `dovetail.v1.Chunk`.

Source: protobuf's encoding: fields may come in any order, and a bytes field is its tag, its length as a varint, and
the bytes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import grpc

from dovetail.pb.v1 import artifacts_pb2 as pb
from dovetail.rpc.interceptor import Context, Handler
from dovetail.store.encoded import EncodedChunk

_LENGTH_DELIMITED = 2
_DATA_TAG = bytes((pb.Chunk.DESCRIPTOR.fields_by_name["data"].number << 3 | _LENGTH_DELIMITED,))
_SERVICE, _METHOD = "dovetail.v1.ArtifactCache", "FetchChunks"

Write = Callable[[bytes], Awaitable[None]]
"""Sends one serialised message; returns when the connection has taken it."""


def chunk_frame(digest: str, chunk: EncodedChunk, offset: int, size_bytes: int) -> bytes:
    """The serialised message with `size_bytes` of a chunk, from `offset` on."""
    data = memoryview(chunk.data)[offset : offset + size_bytes]
    whole = len(data) == len(chunk.data)
    head = pb.Chunk(
        digest=digest,
        codec=int(chunk.codec),  # type: ignore[arg-type]  # the stubs want the enum's own type
        size_bytes=chunk.size_bytes,
        offset=offset,
        encoded_bytes=0 if whole else len(chunk.data),
    )
    return b"".join((head.SerializeToString(), _DATA_TAG, _varint(len(data)), data))


def fetch_handlers(
    serve: Callable[[pb.FetchChunksRequest, Write], Awaitable[None]],
) -> grpc.GenericRpcHandler:
    """FetchChunks as a handler whose messages are made by `chunk_frame`; add it before the rest of the service."""

    async def run(request: pb.FetchChunksRequest, context: Context) -> None:
        await serve(request, context.write)

    handler: Handler = grpc.unary_stream_rpc_method_handler(
        cast(Any, run),  # grpc.aio's second form: a coroutine that writes
        request_deserializer=pb.FetchChunksRequest.FromString,
        response_serializer=None,
    )
    return grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: handler})


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
