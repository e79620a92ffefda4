# SPDX-License-Identifier: Apache-2.0
"""Frames between a front end and the main process, as bytes. Pure: sockets are `pipe`'s business.

    uint8 kind | uint8 flags | 2 unused | uint32 bytes of the body | uint64 number | double value | body

The number is a call's, given by the front end and never used twice. What a body may hold is bounded for each kind, and
so is what a reader takes before it knows that a frame is none.
"""

from __future__ import annotations

import io
import json
import struct
import traceback

from dovetail.errors import ERROR_CLASSES, BusyError, DovetailError, ErrorCode, InvalidInputError

READY = 1
"""Front end → main: it serves; or why it cannot, as text."""
CALL = 2
"""Front end → main: a ModelInfer. The value is its deadline on the system's monotonic clock, infinite if none."""
OPEN = 3
"""Front end → main: a ModelStreamInfer begins. The value as in CALL; the flag AS_STATUS."""
MESSAGE = 4
"""A message of a stream, or the one reply to a call, which ends it."""
END = 5
"""There are no more messages from this side."""
CANCEL = 6
"""Front end → main: nobody waits for the call any more."""
CREDIT = 7
"""The other side may send as many bytes more on that stream as the value says."""
ERROR = 8
"""Main → front end: the call has failed; see `error_body`."""
DROP = 9
"""Main → front end: the call was given up without an answer."""
STOP = 10
"""Main → front end: take no more calls, let those that run finish for as many seconds as the value says, then end."""
LOGS = 11
"""Main → front end: what is to be logged from now on, as a JSON object of `LogSettings`."""

AS_STATUS = 1
"""Flag of OPEN: the first error ends the stream as its status."""

MAX_MESSAGE_BYTES = (1 << 31) - 1
"""What gRPC's libraries can receive and send."""

MAX_ERROR_BYTES = 256 << 10
_MAX_TEXT_CHARS = 16_000  # more than fits a status; each takes at most twelve bytes

BODY_LIMITS = {
    READY: 4096, CALL: MAX_MESSAGE_BYTES, OPEN: 0, MESSAGE: MAX_MESSAGE_BYTES, END: 0, CANCEL: 0, CREDIT: 0,
    ERROR: MAX_ERROR_BYTES, DROP: 0, STOP: 0, LOGS: 4096,
}  # fmt: skip
"""Kind -> most bytes of its body."""

READ_BYTES = 256 << 10
"""Read at once; frames that do not fit are read into memory of their own."""

HEADER = struct.Struct("<BB2xIQd")
HEADER_BYTES = HEADER.size

Frame = tuple[int, int, int, float, bytes]
"""Kind, flags, number, value and body."""


def header_of(kind: int, number: int, size_bytes: int, *, flags: int = 0, value: float = 0.0) -> bytes:
    """What goes before a body.

    Raises:
        InvalidInputError: The body is larger than its kind may have.
    """
    if size_bytes > BODY_LIMITS[kind]:
        raise InvalidInputError(f"a frame of kind {kind} cannot have {size_bytes} bytes")
    return HEADER.pack(kind, flags, size_bytes, number, value)


class FrameParser:
    """Makes frames of what is read. One reader.

    The bytes of a body are never another frame's: a small one is copied out, a large one is read in place.
    """

    def __init__(self) -> None:
        self._small = memoryview(bytearray(READ_BYTES))
        self._filled = 0
        self._large: io.BytesIO | None = None
        self._large_view = memoryview(b"")
        self._large_filled = 0
        self._large_header = (0, 0, 0, 0.0)

    def room(self) -> memoryview:
        """Where to read to; never empty."""
        if self._large is not None:
            return self._large_view[self._large_filled :]
        return self._small[self._filled :]

    def take(self, count: int) -> list[Frame]:
        """The frames that are whole now that `count` bytes have been read to `room`.

        Raises:
            InvalidInputError: That is no frame of ours; nothing can be read any more.
        """
        if self._large is not None:
            self._large_filled += count
            return [self._end_of_large()] if self._large_filled == len(self._large_view) else []
        self._filled += count
        return self._whole()

    def _whole(self) -> list[Frame]:
        frames: list[Frame] = []
        view, place, end = self._small, 0, self._filled
        while end - place >= HEADER_BYTES:
            kind, flags, size, number, value = HEADER.unpack_from(view, place)
            if size > BODY_LIMITS.get(kind, -1) or value != value:
                raise InvalidInputError(
                    f"a frame of kind {kind} with {size} bytes and the value {value} is none of ours"
                )
            start = place + HEADER_BYTES
            stop = start + size
            if stop > end:
                if HEADER_BYTES + size > READ_BYTES:
                    self._begin_large((kind, flags, number, value), size, view[start:end])
                    return frames
                break
            frames.append((kind, flags, number, value, bytes(view[start:stop])))
            place = stop
        rest = end - place
        if place and rest:
            view[:rest] = bytes(view[place:end])
        self._filled = rest
        return frames

    def _begin_large(self, header: tuple[int, int, int, float], size: int, begun: memoryview) -> None:
        self._large = io.BytesIO(bytes(size))  # its own bytes object in the end, and so never copied
        self._large_view = self._large.getbuffer()
        self._large_view[: len(begun)] = begun
        self._large_filled = len(begun)
        self._large_header = header
        self._filled = 0

    def _end_of_large(self) -> Frame:
        large, self._large = self._large, None
        self._large_view.release()
        self._large_view = memoryview(b"")
        return (*self._large_header, large.getvalue() if large is not None else b"")


def error_body(error: Exception) -> bytes:
    """An error as it passes. One of ours keeps its code and text; of a bug, the text is the traceback, for the log."""
    if not isinstance(error, DovetailError) or error.code is ErrorCode.INTERNAL:
        text = "".join(traceback.format_exception(error))[-_MAX_TEXT_CHARS:]
        return json.dumps({"code": ErrorCode.INTERNAL.value, "text": text}).encode()
    fields: dict[str, object] = {"code": error.code.value, "text": str(error)[:_MAX_TEXT_CHARS]}
    if isinstance(error, BusyError):
        fields["retry_after_s"] = error.retry_after_s
    return json.dumps(fields).encode()


def error_from(body: bytes) -> DovetailError:
    """The error of a body that `error_body` has made.

    Raises:
        InvalidInputError: It has made no such body.
    """
    try:
        fields = json.loads(body)
        kind, text, retry_after_s = ERROR_CLASSES[fields["code"]], str(fields["text"]), fields.get("retry_after_s")
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise InvalidInputError("the body of an error frame is not an error") from exc
    if isinstance(retry_after_s, int | float):
        return BusyError(text, retry_after_s=float(retry_after_s))
    return kind(text)
