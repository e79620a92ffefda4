# SPDX-License-Identifier: Apache-2.0
"""Inferences, whatever carries them: the bytes of a request in, the pieces of its reply out.

A transport (`grpc_aio` is one) receives messages, hands each to `InferenceCore` and sends what comes back; it knows no
model, and the core knows no connection. Errors are raised as ours; the transport says them in its own way.

Source: Triton Inference Server, gRPC front end (which model answers, decoupled models, final replies).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import NoReturn, cast
from weakref import WeakKeyDictionary

from dovetail.clock import Clock, SystemClock
from dovetail.errors import BusyError, DovetailError, UnavailableError, UnsupportedError
from dovetail.tensor import Array
from runtime_svc.protocol.model_codec import ModelCodec
from runtime_svc.protocol.pushback import retry_after_s
from runtime_svc.protocol.request_decoding import RequestForm
from runtime_svc.protocol.requested_outputs import bytes_to_regions
from runtime_svc.protocol.wire import Buffer, WireRequest, scan_request
from runtime_svc.repository import Repository
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.served_model import ServedModel
from runtime_svc.shared_memory import SharedMemoryRegions
from runtime_svc.trace import QUEUE_START, RESPONSE_COMPLETE, RequestTrace, Tracer

INLINE_BYTES = 4 << 20
"""Most bytes of shared memory that are copied on the event loop: about a millisecond."""

MAX_HELD_BYTES = 4 << 30
"""Most bytes of messages whose requests are being served; a single one is always let in."""

QUEUE_FULL = "Exceeds maximum queue size"


class InferenceCore:
    """Answers requests with a repository's models. Belongs to one event loop.

    Args:
        repository: The models.
        regions: Where tensors outside of messages may lie.
        tracer: Traces requests.
        clock: Judges deadlines; the repository's models must use the same.
        max_held_bytes: Most bytes of messages at once.
    """

    def __init__(
        self,
        repository: Repository,
        *,
        regions: SharedMemoryRegions,
        tracer: Tracer,
        clock: Clock | None = None,
        max_held_bytes: int = MAX_HELD_BYTES,
    ) -> None:
        self._repository = repository
        self._regions = regions
        self._tracer = tracer
        self._clock = clock or SystemClock()
        self._max_held_bytes = max_held_bytes
        self._held_bytes = 0
        self._codecs: WeakKeyDictionary[ServedModel, ModelCodec] = WeakKeyDictionary()

    def admit(self, size_bytes: int) -> None:
        """Count a message that has come, before anything is done with it; `release` it when it is answered.

        Raises:
            BusyError: There are too many bytes of messages already.
        """
        if self._held_bytes and self._held_bytes + size_bytes > self._max_held_bytes:
            raise BusyError(
                f"requests with {self._held_bytes} bytes are being served, and {size_bytes} more would be over the"
                f" limit of {self._max_held_bytes}; try again later, or send tensors through shared memory"
            )
        self._held_bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        """A message that was admitted is answered."""
        self._held_bytes -= size_bytes

    def is_decoupled(self, wire: WireRequest) -> bool:
        """True if the request has any number of replies; False also if nothing can answer it."""
        try:
            return self._repository.resolve(wire.model_name, wire.model_version).decoupled
        except DovetailError:
            return False

    async def answer(self, message: bytes, remaining_s: float | None = None) -> list[Buffer]:
        """The reply to a request of its own: a serialised ModelInferResponse.

        Args:
            message: A serialised ModelInferRequest.
            remaining_s: Seconds until the caller gives up; None if it never does.

        Raises:
            DovetailError: There is none. A BusyError says when to try again.
        """
        self.admit(len(message))
        try:
            return await self.answer_wire(scan_request(message), remaining_s)
        finally:
            self.release(len(message))

    async def answer_wire(
        self, wire: WireRequest, remaining_s: float | None = None, *, final: bool | None = None
    ) -> list[Buffer]:
        """The one reply to a request.

        Args:
            wire: The request, admitted.
            remaining_s: See `answer`.
            final: True: say that it is the last reply, as in a stream.

        Raises:
            DovetailError: There is none.
        """
        trace = self._tracer.begin(wire.model_name)
        model = self._resolve(wire)
        with model.lease():
            if model.decoupled:
                raise UnsupportedError("ModelInfer RPC doesn't support models with decoupled transaction policy")
            codec = self._codec(model)
            form = codec.form(wire)
            request = await self._decode(codec, form, wire, remaining_s)
            if trace is not None:
                trace.mark(QUEUE_START)
            try:
                outputs = await model.infer(request)
            except UnavailableError as error:
                _turn_away(error, model)
            if trace is not None:
                trace.mark(RESPONSE_COMPLETE)
            size = bytes_to_regions(form.outputs)
            if size <= INLINE_BYTES:
                pieces = codec.encoder.encode(wire.request_id, outputs, form.outputs, final=final)
            else:
                pieces = await asyncio.to_thread(
                    codec.encoder.encode, wire.request_id, outputs, form.outputs, final=final
                )
            if trace is not None:
                self._finish(trace, model, wire)
            return pieces

    async def answers(self, wire: WireRequest, remaining_s: float | None = None) -> AsyncGenerator[list[Buffer], None]:
        """All replies to a request to a decoupled model, each as soon as the model gives it.

        The model waits while nobody takes the next one, and is told if nobody ever will (`aclose`). Only a request
        that wants it gets an empty last reply; none of the others is marked as the last.

        Raises:
            DovetailError: From the iteration; there are no more replies then.
        """
        trace = self._tracer.begin(wire.model_name)
        model = self._resolve(wire)
        with model.lease():
            codec = self._codec(model)
            form = codec.form(wire)
            request = await self._decode(codec, form, wire, remaining_s)
            if trace is not None:
                trace.mark(QUEUE_START)
            replies = cast("AsyncGenerator[dict[str, Array], None]", model.responses(request))
            try:
                async with aclosing(replies):
                    async for outputs in replies:
                        yield codec.encoder.encode(wire.request_id, outputs, form.outputs, final=False)
            except UnavailableError as error:
                _turn_away(error, model)
            if form.options.empty_final:
                yield codec.encoder.empty_final(wire.request_id)
            if trace is not None:
                trace.mark(RESPONSE_COMPLETE)
                self._finish(trace, model, wire)

    def _resolve(self, wire: WireRequest) -> ServedModel:
        try:
            return self._repository.resolve(wire.model_name, wire.model_version)
        except DovetailError:
            wire.parse_rest()  # bytes that are no request are that first of all
            raise

    def _codec(self, model: ServedModel) -> ModelCodec:
        codec = self._codecs.get(model)
        if codec is None:
            codec = self._codecs[model] = ModelCodec(model, self._regions)
        return codec

    async def _decode(
        self, codec: ModelCodec, form: RequestForm, wire: WireRequest, remaining_s: float | None
    ) -> InferenceRequest:
        deadline_s = None if remaining_s is None else self._clock.monotonic_s() + remaining_s
        # Requests of a sequence must reach the scheduler in their order, so none of them waits for a thread.
        if form.region_bytes <= INLINE_BYTES or form.options.sequence is not None:
            return codec.decode(form, wire.raw, deadline_s)
        return await asyncio.to_thread(codec.decode, form, wire.raw, deadline_s)

    def _finish(self, trace: RequestTrace, model: ServedModel, wire: WireRequest) -> None:
        facts = model.facts
        self._tracer.finish(trace, model=facts.name, version=facts.version, request_id=wire.request_id)


def _turn_away(error: UnavailableError, model: ServedModel) -> NoReturn:
    """Raise the error; a full queue's refusal says when to try again."""
    if isinstance(error, BusyError) or str(error) != QUEUE_FULL:
        raise error
    raise BusyError(QUEUE_FULL, retry_after_s=retry_after_s(model)) from error
