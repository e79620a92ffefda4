# SPDX-License-Identifier: Apache-2.0
"""The one table between our errors and gRPC's status codes, and the way back for clients.

Several of our codes share one status, so the exact code also travels in trailing metadata (`x-dovetail-code`); a
client of another make needs only the status. Nothing here logs and nothing here knows a service.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import cast

import grpc

from dovetail.errors import (
    ERROR_CLASSES,
    AlreadyExistsError,
    BusyError,
    CancelledError,
    DeadlineError,
    DovetailError,
    ErrorCode,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    OverLimitError,
    PreconditionError,
    UnavailableError,
    UnsupportedError,
)

CODE_METADATA_KEY = "x-dovetail-code"
REQUEST_ID_METADATA_KEY = "x-request-id"

RETRY_METADATA_KEY = "grpc-retry-pushback-ms"
"""Trailer that says how long to wait before the next attempt. Source: gRFC A6, "gRPC Retry Design", pushback."""

MAX_TEXT_BYTES = 6 * 1024
"""Longest error text on the wire, percent-encoded: it travels in HTTP/2 trailers, whose default limit is 8 KiB."""

MAX_RETRY_AFTER_S = 300.0
"""Longest pause that a client takes at a server's word."""

STATUS_BY_CODE: Mapping[ErrorCode, grpc.StatusCode] = MappingProxyType(
    {
        ErrorCode.INVALID_INPUT: grpc.StatusCode.INVALID_ARGUMENT,
        ErrorCode.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
        ErrorCode.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
        ErrorCode.PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
        ErrorCode.UNSUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
        ErrorCode.INCOMPATIBLE: grpc.StatusCode.FAILED_PRECONDITION,
        ErrorCode.INTEGRITY: grpc.StatusCode.DATA_LOSS,
        ErrorCode.UNTRUSTED: grpc.StatusCode.FAILED_PRECONDITION,
        ErrorCode.OVER_LIMIT: grpc.StatusCode.RESOURCE_EXHAUSTED,
        ErrorCode.DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
        ErrorCode.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
        ErrorCode.CANCELLED: grpc.StatusCode.CANCELLED,
        ErrorCode.ENGINE: grpc.StatusCode.INTERNAL,
        ErrorCode.BUILD_FAILED: grpc.StatusCode.FAILED_PRECONDITION,
        ErrorCode.INTERNAL: grpc.StatusCode.INTERNAL,
    }
)

_CLASS_BY_STATUS: Mapping[grpc.StatusCode, type[DovetailError]] = MappingProxyType(
    {
        grpc.StatusCode.INVALID_ARGUMENT: InvalidInputError,
        grpc.StatusCode.OUT_OF_RANGE: InvalidInputError,
        grpc.StatusCode.NOT_FOUND: NotFoundError,
        grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
        grpc.StatusCode.FAILED_PRECONDITION: PreconditionError,
        grpc.StatusCode.ABORTED: UnavailableError,
        grpc.StatusCode.UNIMPLEMENTED: UnsupportedError,
        grpc.StatusCode.DATA_LOSS: IntegrityError,
        grpc.StatusCode.RESOURCE_EXHAUSTED: OverLimitError,
        grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
        grpc.StatusCode.UNAVAILABLE: UnavailableError,
        grpc.StatusCode.CANCELLED: CancelledError,
    }
)


def status_of(error: DovetailError) -> grpc.StatusCode:
    """Status that a client gets for one of our errors."""
    return STATUS_BY_CODE[error.code]


def trailers_of(error: DovetailError, request_id: str) -> tuple[tuple[str, str], ...]:
    """Trailing metadata that goes with one of our errors."""
    metadata = ((REQUEST_ID_METADATA_KEY, request_id), (CODE_METADATA_KEY, error.code.value))
    if isinstance(error, BusyError):
        return (*metadata, (RETRY_METADATA_KEY, str(round(error.retry_after_s * 1000))))
    return metadata


def public_text(text: str) -> str:
    """The text as it may travel: control characters out, cut so that it fits the trailers.

    gRPC percent-encodes everything outside printable ASCII, so such a character counts three bytes per UTF-8 byte.
    """
    room = MAX_TEXT_BYTES
    kept: list[str] = []
    for char in text.replace("\r\n", "\n"):
        shown = char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}"
        room -= 1 if " " <= shown <= "~" and shown != "%" else 3 * len(shown.encode("utf-8", "replace"))
        if room < len(" [cut]"):
            return "".join(kept) + " [cut]"
        kept.append(shown)
    return "".join(kept)


def error_from_rpc(error: grpc.RpcError, peer: str = "the service") -> DovetailError:
    """Our exception for a failed call, with the server's public text.

    Args:
        error: From grpc or grpc.aio; both tell code, details and trailing metadata.
        peer: Who was called, for the text where the server itself could not say anything.
    """
    status = error.code()
    text = error.details() or f"{peer} answered {status.name} without a reason"
    metadata = _metadata(error)
    if (pause_ms := metadata.get(RETRY_METADATA_KEY, "")).isascii() and pause_ms.isdigit():
        return BusyError(text, retry_after_s=min(int(pause_ms[:9]) / 1000, MAX_RETRY_AFTER_S))
    known = ERROR_CLASSES.get(metadata.get(CODE_METADATA_KEY, ""))
    if known is not None:
        return known(text)
    if REQUEST_ID_METADATA_KEY not in metadata and status is grpc.StatusCode.UNAVAILABLE:
        return UnavailableError(f"no answer from {peer}: {text}")
    if REQUEST_ID_METADATA_KEY not in metadata and status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineError(f"no answer from {peer} in time")
    return _CLASS_BY_STATUS.get(status, DovetailError)(text)


@contextmanager
def translated_errors(peer: str = "the service") -> Iterator[None]:
    """Calls inside raise our errors instead of gRPC's.

    Raises:
        DovetailError: The class that `error_from_rpc` gives.
    """
    try:
        yield
    except grpc.RpcError as exc:
        raise error_from_rpc(exc, peer) from exc


def _metadata(error: grpc.RpcError) -> dict[str, str]:
    pairs = cast(Iterable[tuple[str, str | bytes]], error.trailing_metadata() or ())
    return {key: value for key, value in pairs if isinstance(value, str)}
