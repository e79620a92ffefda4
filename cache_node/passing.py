# SPDX-License-Identifier: Apache-2.0
"""Calls that a cache node only passes on: bytes in, bytes out, with the caller's deadline and metadata.

Which they are is a list, not "all the rest": a site's cache is no way to push models or to order builds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
import grpc.aio

from dovetail.rpc.interceptor import Context, Handler
from dovetail.rpc.lifecycle import until
from dovetail.rpc.status import translated_errors

UNARY = frozenset(
    {
        "/dovetail.v1.ArtifactCache/Negotiate",
        "/dovetail.v1.ArtifactCache/ReportBenchmark",
        "/dovetail.v1.ArtifactCache/ListArtifacts",
        "/dovetail.v1.Fleet/ReportNode",
        "/dovetail.v1.Fleet/ListNodes",
        "/dovetail.v1.ModelRegistry/ListModels",
        "/dovetail.v1.ModelRegistry/GetModel",
    }
)
"""What nodes, and people who look at them, call."""

STREAMS = frozenset({"/dovetail.v1.ArtifactCache/WatchOffers"})

LONGEST_S = 60.0
"""Deadline upstream of a unary call whose caller set none."""

_OURS = ("grpc-", ":", "user-agent", "content-type", "te")
"""Beginnings of the metadata that belong to one connection and not to the call."""


class PassedOn(grpc.GenericRpcHandler):
    """Handlers of the calls that upstream answers.

    Args:
        channel: To upstream.
        name: Its address, for errors.
        stopping: Ends the streams.
    """

    def __init__(self, channel: grpc.aio.Channel, name: str, *, stopping: asyncio.Event) -> None:
        self._channel = channel
        self._peer = f"the compiler service at {name}, asked through this cache node"
        self._stopping = stopping

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """The handler of a method, or None if it is not passed on."""
        method = str(handler_call_details.method)
        if method in UNARY:
            return grpc.unary_unary_rpc_method_handler(cast(Any, self._unary(method)))
        if method in STREAMS:
            return grpc.unary_stream_rpc_method_handler(cast(Any, self._stream(method)))
        return None

    def _unary(self, method: str) -> object:
        async def run(request: bytes, context: Context) -> bytes:
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(method)
            remaining_s = context.time_remaining()
            timeout_s = LONGEST_S if remaining_s is None else max(0.0, remaining_s)
            with translated_errors(self._peer):
                return await call(request, timeout=timeout_s, metadata=_metadata(context))

        return run

    def _stream(self, method: str) -> object:
        async def run(request: bytes, context: Context) -> AsyncIterator[bytes]:
            why = "this cache node is stopping; watch again in a moment"
            async for answer in until(self._stopping, self._answers(method, request, context), why=why):
                yield answer

        return run

    async def _answers(self, method: str, request: bytes, context: Context) -> AsyncIterator[bytes]:
        method_call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(method)
        call = method_call(request, timeout=context.time_remaining(), metadata=_metadata(context))
        try:
            with translated_errors(self._peer):
                async for answer in call:
                    yield answer
        finally:
            call.cancel()


def _metadata(context: Context) -> grpc.aio.Metadata:
    pairs = context.invocation_metadata() or ()
    return grpc.aio.Metadata(*((key, value) for key, value in pairs if not key.startswith(_OURS)))
