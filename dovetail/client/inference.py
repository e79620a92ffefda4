# SPDX-License-Identifier: Apache-2.0
"""Inference at one node over the Open Inference Protocol: arrays in, arrays out, one call or a stream.

Tensors travel as raw bytes, never as repeated fields. Which node to ask is decided in `async_client`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence

import grpc.aio
import numpy as np

from dovetail.client.results import Tensors
from dovetail.errors import DovetailError, IntegrityError, InvalidInputError
from dovetail.pb import oip, oip_pb2
from dovetail.rpc.channel import open_channel
from dovetail.rpc.early_end import true_end
from dovetail.rpc.status import translated_errors
from dovetail.tensor import Array, TensorSpec, datatype_of, from_raw, to_raw

Requests = Iterable[Tensors] | AsyncIterable[Tensors]


class InferenceNode:
    """A connection to one node. Belongs to the event loop it was made in; many calls may run at once."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel: grpc.aio.Channel = open_channel(address)
        self._stub = oip.Stub(self._channel)

    async def close(self) -> None:
        """Close the connection; running calls are cancelled."""
        await self._channel.close()

    async def infer(
        self, model: str, inputs: Tensors, *, version: str, outputs: Sequence[str], timeout_s: float
    ) -> Mapping[str, Array]:
        """One inference.

        Raises:
            NotFoundError: The node has no such model or version.
            InvalidInputError: Wrong input name, datatype or shape.
            UnavailableError: The node does not answer or the model is not ready there.
        """
        request = infer_request(model, inputs, version=version, outputs=outputs)
        with translated_errors(self.address):
            response = await self._stub.ModelInfer(request, timeout=timeout_s)
        return read_response(response)

    async def stream(
        self, model: str, requests: Requests, *, version: str, outputs: Sequence[str]
    ) -> AsyncGenerator[Mapping[str, Array], None]:
        """One result per request, in the order of the requests, over one stream."""
        early: dict[str, Mapping[str, Array]] = {}
        upcoming = 0
        failed: list[BaseException] = []
        call = self._stub.ModelStreamInfer(_numbered(model, requests, version, outputs, failed))
        try:
            with translated_errors(self.address), true_end(call):
                async for response in call:
                    number = response.infer_response.id
                    if response.error_message:
                        raise DovetailError(f"request {number or '?'} of the stream: {response.error_message}")
                    early[number] = read_response(response.infer_response)
                    while str(upcoming) in early:
                        yield early.pop(str(upcoming))
                        upcoming += 1
            if failed:
                raise failed[0]
        finally:
            call.cancel()

    async def signature(self, model: str, version: str) -> tuple[TensorSpec, ...]:
        """Inputs as the node's metadata says.

        Raises:
            NotFoundError: The node has no such model or version.
        """
        request = oip_pb2.ModelMetadataRequest(name=model, version=version)
        with translated_errors(self.address):
            metadata = await self._stub.ModelMetadata(request, timeout=10.0)
        return tuple(TensorSpec(item.name, item.datatype, tuple(item.shape)) for item in metadata.inputs)


async def _numbered(
    model: str, requests: Requests, version: str, outputs: Sequence[str], failed: list[BaseException]
) -> AsyncIterator[oip_pb2.ModelInferRequest]:
    """Requests with their number as id; gRPC swallows what this raises, so it is kept in `failed` for the reader."""
    try:
        number = 0
        async for inputs in _asynchronous(requests):
            yield infer_request(model, inputs, version=version, outputs=outputs, request_id=str(number))
            number += 1
    except Exception as exc:
        failed.append(exc)


async def _asynchronous(requests: Requests) -> AsyncIterator[Tensors]:
    if isinstance(requests, AsyncIterable):
        async for item in requests:
            yield item
        return
    if isinstance(requests, Sequence):
        for item in requests:
            yield item
        return
    iterator = iter(requests)
    end = object()
    while (found := await asyncio.to_thread(next, iterator, end)) is not end:  # a generator may block: not on the loop
        yield found  # type: ignore[misc]


def infer_request(
    model: str, inputs: Tensors, *, version: str = "", outputs: Sequence[str] = (), request_id: str = ""
) -> oip_pb2.ModelInferRequest:
    """The request for some named arrays.

    Raises:
        InvalidInputError: There are no inputs, or one has a dtype that the protocol does not know.
    """
    if not inputs:
        raise InvalidInputError(f"no inputs for model {model!r}: give at least one named array")
    request = oip_pb2.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for name, value in inputs.items():
        array = np.asarray(value)
        datatype = datatype_of(array)
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(to_raw(array, datatype))
    for name in outputs:
        request.outputs.add(name=name)
    return request


def read_response(response: oip_pb2.ModelInferResponse) -> Mapping[str, Array]:
    """The named arrays of a response; read-only views of its bytes.

    Raises:
        IntegrityError: It does not hold raw bytes for every output.
    """
    if len(response.raw_output_contents) != len(response.outputs):
        raise IntegrityError(
            f"the node sent {len(response.raw_output_contents)} raw outputs for {len(response.outputs)} described ones"
        )
    return {
        output.name: from_raw(raw, output.datatype, tuple(output.shape), name=output.name)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }
