# SPDX-License-Identifier: Apache-2.0
"""One call of ModelStreamInfer, whatever carries it: each message becomes a request, its replies or error messages.

The order of events is `stream`'s; here is what one message means. A transport says how to read, how to write, and how
long the caller waits.

Source: Triton Inference Server, gRPC front end (errors in a stream, and as its status).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from dovetail.errors import DovetailError
from dovetail.rpc.status import public_text
from runtime_svc.protocol.inference import InferenceCore
from runtime_svc.protocol.response_encoding import in_stream, stream_error
from runtime_svc.protocol.stream import AnyReplies, Exchange, OneReply, ReplyStream
from runtime_svc.protocol.wire import MalformedMessageError, WireRequest, scan_request


class InferStream:
    """Runs once, on the core's event loop.

    Args:
        core: Answers.
        remaining_s: Seconds until the caller gives up; None if it never does.
        as_status: The first error ends the stream, instead of being a message.
    """

    def __init__(self, core: InferenceCore, remaining_s: Callable[[], float | None], *, as_status: bool) -> None:
        self._core = core
        self._remaining_s = remaining_s
        self._as_status = as_status

    async def run(self, read: Callable[[], Awaitable[bytes | None]], write: Callable[[bytes], Awaitable[None]]) -> None:
        """Answer until the client is done.

        Args:
            read: Gives the next message, None at the end.
            write: Sends a reply; returns when the transport can take the next one.

        Raises:
            DovetailError: The stream ends with this status.
        """
        await ReplyStream(self._begin, write).run(read)

    def _begin(self, message: bytes) -> Exchange:
        wire = scan_request(message)
        if self._core.is_decoupled(wire):
            return AnyReplies(self._replies(wire, len(message)))
        return OneReply(self._reply(wire, len(message)))

    async def _reply(self, wire: WireRequest, size_bytes: int) -> bytes:
        try:
            self._core.admit(size_bytes)
            try:
                pieces = await self._core.answer_wire(wire, self._remaining_s(), final=True)
            finally:
                self._core.release(size_bytes)
        except DovetailError as error:
            return self._error_reply(wire, error)
        return b"".join(in_stream(pieces))

    async def _replies(self, wire: WireRequest, size_bytes: int) -> AsyncGenerator[bytes, None]:
        try:
            self._core.admit(size_bytes)
            try:
                async with aclosing(self._core.answers(wire, self._remaining_s())) as answers:
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
