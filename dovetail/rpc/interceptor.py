# SPDX-License-Identifier: Apache-2.0
"""What happens around every RPC of every server: errors become statuses, one summary line is logged, ids are passed.

A servicer just raises our errors. Anything else it raises is a bug: the client gets INTERNAL with the request id, the
traceback goes to the log and nowhere else. This is one of the two places where a bare exception is caught (the
other is `__main__`).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any, NoReturn, TypeAlias, cast

import grpc
import grpc.aio

from dovetail.errors import DovetailError, ErrorCode
from dovetail.rpc.status import CODE_METADATA_KEY, REQUEST_ID_METADATA_KEY, public_text, status_of, trailers_of

_log = logging.getLogger(__name__)
_REQUEST_ID_PATTERN = re.compile(r"^[A-Za-z0-9._:-]{1,64}$")

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

ABORT_TIMEOUT_S = 1.0
"""How long a status may wait behind data that the peer does not take."""

QUIET_SERVICES = frozenset(
    {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", "inference.GRPCInferenceService"}
)
"""Services whose successful calls are logged at DEBUG: probes and inferences would bury every other line."""

LEAN_METHODS = frozenset({"/inference.GRPCInferenceService/ModelInfer"})
"""Methods that are called so often that a success carries no request id; their handlers are coroutines."""


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Translates errors, logs one line per RPC and returns the request id in trailing metadata.

    Args:
        quiet: Names of services whose successful calls are logged at DEBUG instead of INFO.
        lean: See LEAN_METHODS.
    """

    def __init__(self, quiet: Collection[str] = QUIET_SERVICES, lean: Collection[str] = LEAN_METHODS) -> None:
        self._quiet = frozenset(quiet)
        self._lean = frozenset(lean)
        self._lean_handlers: dict[str, tuple[Handler, Handler]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wrap the method that will serve the call."""
        handler = await continuation(handler_call_details)
        if handler is None:  # no such method: grpc answers UNIMPLEMENTED itself
            return handler
        method = _text(handler_call_details.method)
        if method in self._lean:
            kept = self._lean_handlers.get(method)
            if kept is None or kept[0] is not handler:
                kept = self._lean_handlers[method] = (handler, _lean(handler, _Call(method, logging.DEBUG)))
            return kept[1]
        level = logging.DEBUG if method.strip("/").split("/")[0] in self._quiet else logging.INFO
        return _wrapped(handler, _Call(method, level))


class _Call:
    """The wrapper of one method's calls."""

    def __init__(self, method: str, level: int) -> None:
        self._method = method
        self._level = level

    @asynccontextmanager
    async def observed(self, context: Context, started: float | None = None) -> AsyncIterator[None]:
        """Run one call inside; ends it with the right status whatever happens.

        Args:
            context: Of the call.
            started: When it began, on the monotonic clock; now if None.
        """
        started = time.monotonic() if started is None else started
        request_id = _request_id(context)
        context.set_trailing_metadata(((REQUEST_ID_METADATA_KEY, request_id),))
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):  # the client went away or the server is stopping
            self._log_end(context, "CANCELLED", started, request_id)
            raise
        except grpc.aio.AbortError:
            self._log_end(context, _status_name(context), started, request_id)
            raise
        except DovetailError as exc:
            if exc.code is ErrorCode.INTERNAL:
                await self._hide(context, exc, started, request_id)
            status = status_of(exc)
            self._log_end(context, status.name, started, request_id, reason=str(exc))
            await _abort(context, status, public_text(str(exc)), trailers_of(exc, request_id))
        except Exception as exc:  # the border: whatever else it is, the client must not see it
            await self._hide(context, exc, started, request_id)
        else:
            self._log_end(context, _status_name(context), started, request_id)

    async def run_leanly(self, behavior: Callable[..., Any], request: object, context: Context) -> object:
        """As inside `observed`, but a success costs nothing unless somebody wants to read of it."""
        started = time.monotonic()
        try:
            answer = await behavior(request, context)
        except BaseException as exc:  # a cancellation is told, too
            async with self.observed(context, started):
                raise exc from exc.__cause__
        if _log.isEnabledFor(self._level):
            self._log_end(context, _status_name(context), started, _request_id(context))
        return answer

    async def _hide(self, context: Context, exc: Exception, started: float, request_id: str) -> None:
        _log.error("rpc.bug method=%s request_id=%s", self._method, request_id, exc_info=exc)
        self._log_end(context, "INTERNAL", started, request_id)
        await _abort(
            context,
            grpc.StatusCode.INTERNAL,
            f"internal error, request id {request_id}: the server's log has the details under this id",
            ((REQUEST_ID_METADATA_KEY, request_id), (CODE_METADATA_KEY, ErrorCode.INTERNAL.value)),
        )

    def _log_end(self, context: Context, status: str, started: float, request_id: str, *, reason: str = "") -> None:
        level = self._level if status in ("OK", "CANCELLED") else logging.INFO
        if not _log.isEnabledFor(level):
            return
        elapsed_ms = (time.monotonic() - started) * 1000
        if reason:
            _log.log(
                level, "rpc.end method=%s peer=%s status=%s ms=%.1f request_id=%s why=%r",
                self._method, context.peer(), status, elapsed_ms, request_id, reason[:500],
            )  # fmt: skip
        else:
            _log.log(
                level, "rpc.end method=%s peer=%s status=%s ms=%.1f request_id=%s",
                self._method, context.peer(), status, elapsed_ms, request_id,
            )  # fmt: skip


async def _abort(
    context: Context, status: grpc.StatusCode, text: str, trailers: tuple[tuple[str, str], ...]
) -> NoReturn:
    """End a call with a status. A peer that takes nothing would never get it, so its stream is reset after a moment."""
    try:
        async with asyncio.timeout(ABORT_TIMEOUT_S):
            await context.abort(status, text, trailing_metadata=trailers)
    except TimeoutError:
        raise asyncio.CancelledError from None  # grpc.aio drops the call without a word, and its core resets the stream


def _wrapped(handler: Handler, call: _Call) -> Handler:
    if handler.request_streaming and handler.response_streaming:
        behavior = handler.stream_stream
        make: Callable[..., Handler] = grpc.stream_stream_rpc_method_handler
    elif handler.request_streaming:
        behavior, make = handler.stream_unary, grpc.stream_unary_rpc_method_handler
    elif handler.response_streaming:
        behavior, make = handler.unary_stream, grpc.unary_stream_rpc_method_handler
    else:
        behavior, make = handler.unary_unary, grpc.unary_unary_rpc_method_handler
    wrap = _wrapped_stream if inspect.isasyncgenfunction(behavior) else _wrapped_coroutine
    return make(
        wrap(cast(Callable[..., Any], behavior), call),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _lean(handler: Handler, call: _Call) -> Handler:
    behavior = cast(Callable[..., Any], handler.unary_unary)

    async def run(request: object, context: Context) -> object:
        return await call.run_leanly(behavior, request, context)

    return grpc.unary_unary_rpc_method_handler(
        run, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
    )


def _wrapped_coroutine(behavior: Callable[..., Any], call: _Call) -> Callable[..., Any]:
    """For unary answers, and for streamed ones that use `context.write`."""

    async def run(request_or_iterator: object, context: Context) -> object:
        async with call.observed(context):
            return await behavior(request_or_iterator, context)

    return run


def _wrapped_stream(behavior: Callable[..., Any], call: _Call) -> Callable[..., Any]:
    """For answers that are yielded; the servicer's generator is closed also when the client goes away."""

    async def run(request_or_iterator: object, context: Context) -> AsyncIterator[object]:
        async with call.observed(context):
            answers = behavior(request_or_iterator, context)
            try:
                async for answer in answers:
                    yield answer
            finally:
                await answers.aclose()

    return run


def _request_id(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_METADATA_KEY and isinstance(value, str) and _REQUEST_ID_PATTERN.fullmatch(value):
            return value
    return uuid.uuid4().hex


def _status_name(context: Context) -> str:
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code.name
    names = {status.value[0]: status.name for status in grpc.StatusCode}  # grpc.aio may hand out the bare number
    return names.get(code or 0, str(code))


def _text(method: str | bytes) -> str:
    return method.decode() if isinstance(method, bytes) else method
