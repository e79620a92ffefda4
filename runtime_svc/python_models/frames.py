# SPDX-License-Identifier: Apache-2.0
"""Messages between a node and the process of a Python model: a header and raw tensors. Nothing is ever pickled.

    uint32 bytes of the header | uint64 bytes of the body | header | body
    uint32 2**31 + form        | uint64 bytes of the body | uint64 number | float64 remaining_s | body

The header is a JSON object with `op` and, if there are tensors, `tensors` (see `layout`). `shared` says that the body
is in shared memory instead of the message. A header that says `form` may be expected again: from then on the second
kind stands for it, with another `number` and `remaining_s` (NaN: none), so that JSON is written and read once. The
sides take turns, so there is never more than one message on its way.
"""

from __future__ import annotations

import contextlib
import json
import math
import socket
import struct
import threading
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dovetail.errors import DovetailError, InvalidInputError, OverLimitError
from dovetail.tensor import Array
from runtime_svc.python_models.layout import Body, Place, arrays_over, read_places
from runtime_svc.python_models.shared_pages import SharedPages

MAX_HEADER_BYTES = 1 << 20  # names and shapes of the largest signature are far below
MAX_BODY_BYTES = 4 << 30
"""Most bytes of tensors in a message: above what any transport of the protocol brings in."""

MAX_FORMS = 64
"""Most headers that are remembered in each direction; the oldest makes room for a new one."""

_PREFIX = struct.Struct("<IQ")
_SHORT = struct.Struct("<IQQd")
_FORM = 1 << 31
_CHANGING = ("number", "remaining_s", "form")
_to_json = json.JSONEncoder(separators=(",", ":")).encode
_from_json = json.JSONDecoder().raw_decode
_PIECES_AT_ONCE = 512  # below the system's IOV_MAX of 1024
_READ_BYTES = 64 << 10  # most messages whole, in one call
_COPIED_BYTES = 4 << 10  # up to here a copy costs less than telling the system of several pieces


class PeerGoneError(DovetailError):
    """The other side has ended or closed the connection."""


class PeerSilentError(DovetailError):
    """The other side did not answer in time."""


@dataclass(slots=True)
class _Form:
    """A header that comes again, without what changes; its places once they were checked, for a body of that size."""

    fields: dict[str, Any]
    size_bytes: int = -1
    places: list[Place] = field(default_factory=list)


@dataclass(slots=True)
class Message:
    """One message as received.

    Attributes:
        header: Its JSON object.
        body: What its tensors are in; None if they are in shared memory.
        form: Of its header; None if it has none.
    """

    header: dict[str, Any]
    body: Array | None
    form: _Form | None = None

    @property
    def op(self) -> str:
        """What it is."""
        return str(self.header.get("op"))


class Connection:
    """One end of a socket pair. One thread at a time, but for `close`, which any may call.

    Args:
        sock: Connected stream socket, owned from now on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._read = bytearray(_READ_BYTES)
        self._in_use = threading.Lock()
        self._timeout_s = sock.gettimeout()
        self._sent: dict[Hashable, int] = {}
        self._taught = 0
        self._forms: dict[int, _Form] = {}

    def close(self) -> None:
        """Close the socket; whoever waits for the other side is told that it is gone."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        with self._in_use:  # not while a call is under way: its descriptor could be another file's by then
            self._sock.close()

    def set_timeout(self, seconds: float | None) -> None:
        """Longest wait of each following read and write."""
        if seconds != self._timeout_s:
            self._timeout_s = seconds
            with contextlib.suppress(OSError):  # closed: the next call says so
                self._sock.settimeout(seconds)

    def send(
        self, header: Mapping[str, Any], body: Body | None = None, *, shared: bool = False, alike: Hashable = None
    ) -> None:
        """Send a message.

        Args:
            header: Its JSON object.
            body: Its tensors.
            shared: They are in shared memory already, and only their places are sent.
            alike: The same for headers that differ in `number` and `remaining_s` only, if more like it will follow.

        Raises:
            PeerGoneError: The other side is gone.
            PeerSilentError: It does not read.
            OverLimitError: It is larger than a message may be.
        """
        size = 0 if body is None or shared else body.size_bytes
        key: Hashable = None
        if alike is not None and (body is None or body.is_steady):
            key = (alike, shared, *(() if body is None else body.places))
        form = None if key is None else self._sent.get(key)
        if form is None:
            first = _whole_header(self._taught_header(header, key), body, size, shared)
        else:
            first = _SHORT.pack(_FORM | form, size, header.get("number", 0), header.get("remaining_s", math.nan))
        if size > MAX_BODY_BYTES:
            raise OverLimitError(f"a message of {size} bytes is more than there may be")
        pieces = [first] if body is None or shared else [first, *body.buffers()]
        if size <= _COPIED_BYTES:
            pieces = [b"".join(pieces)]
        try:
            with self._in_use:
                single = len(pieces) == 1
                sent = self._sock.send(pieces[0]) if single else self._sock.sendmsg(pieces[:_PIECES_AT_ONCE])
                if sent < sum(map(len, pieces)):
                    self._send_rest([memoryview(piece) for piece in pieces], sent)
        except TimeoutError as exc:
            raise PeerSilentError("the other side does not read") from exc
        except OSError as exc:
            raise PeerGoneError("the other side is gone") from exc

    def receive(self) -> Message:
        """The next message.

        Raises:
            PeerGoneError: The other side is gone, also in the middle of a message.
            PeerSilentError: Nothing came in time.
            OverLimitError: It says that it is larger than any message may be.
            InvalidInputError: It is not a message.
        """
        with self._in_use:
            return self._receive()

    def arrays(self, message: Message, shared: SharedPages | None = None) -> dict[str, Array]:
        """A message's tensors by name, as views of it or of the shared memory.

        Raises:
            InvalidInputError: What the header says about them is wrong, or there is no shared memory.
        """
        body = message.body if message.body is not None else shared.array if shared is not None else None
        if body is None:
            raise InvalidInputError("tensors are said to be in shared memory, and there is none")
        form = message.form
        if form is None:
            return arrays_over(read_places(message.header.get("tensors", []), body.nbytes), body)
        if form.size_bytes != body.nbytes:  # else they were checked
            form.places = read_places(form.fields.get("tensors", []), body.nbytes)
            form.size_bytes = body.nbytes
        return arrays_over(form.places, body)

    def _taught_header(self, header: Mapping[str, Any], key: Hashable) -> Mapping[str, Any]:
        """The header, with the number under which the other side is to remember it."""
        if key is None:
            return header
        form = self._taught % MAX_FORMS
        if self._taught >= MAX_FORMS:
            del self._sent[next(iter(self._sent))]  # the oldest, whose number this is
        self._sent[key] = form
        self._taught += 1
        return {**header, "form": form}

    def _receive(self) -> Message:
        read = memoryview(self._read)
        got = self._read_into(read, _PREFIX.size)
        header_bytes, body_bytes = _PREFIX.unpack_from(self._read)
        short = header_bytes >= _FORM
        if body_bytes > MAX_BODY_BYTES or (not short and header_bytes > MAX_HEADER_BYTES):
            raise OverLimitError(f"a message of {header_bytes} and {body_bytes} bytes is more than there may be")
        if short:
            if got < _SHORT.size:
                got += self._read_into(read[got:], _SHORT.size - got)
            message, start = self._short(header_bytes - _FORM), _SHORT.size
        else:
            start = _PREFIX.size + header_bytes
            if got < start and start > len(read):
                read = memoryview(bytearray(start))
                read[:got] = self._read[:got]
            if got < start:
                got += self._read_into(read[got:], start - got)
            message = self._whole(bytes(read[_PREFIX.size : start]))
        if got - start > body_bytes:
            raise InvalidInputError("two messages came where there should be one")
        body = np.empty(body_bytes, dtype=np.uint8)
        body.data[: got - start] = read[start:got]
        if got - start < body_bytes:
            self._read_into(body.data[got - start :], body_bytes - (got - start))
        if message.header.get("shared") is not True:
            message.body = body
        return message

    def _short(self, number: int) -> Message:
        form = self._forms.get(number)
        if form is None:
            raise InvalidInputError(f"a message has the form {number}, which was never said")
        _, _, number, remaining_s = _SHORT.unpack_from(self._read)
        header = {**form.fields, "number": number}
        if remaining_s == remaining_s:
            header["remaining_s"] = remaining_s
        return Message(header, None, form)

    def _whole(self, text: bytes) -> Message:
        header = _read_header(text)
        number = header.get("form")
        if number is None:
            return Message(header, None)
        if not isinstance(number, int) or not 0 <= number < MAX_FORMS:
            raise InvalidInputError(f"a message has a form that is none: {str(number)[:80]}")
        form = _Form({name: value for name, value in header.items() if name not in _CHANGING})
        self._forms[number] = form
        return Message(header, None, form)

    def _send_rest(self, views: list[memoryview], sent: int) -> None:
        while True:
            while views and sent >= len(views[0]):
                sent -= len(views.pop(0))
            if not views:
                return
            views[0] = views[0][sent:]
            sent = self._sock.sendmsg(views[:_PIECES_AT_ONCE])

    def _read_into(self, target: memoryview, least: int) -> int:
        filled = 0
        try:
            while filled < least:
                got = self._sock.recv_into(target[filled:])
                if got == 0:
                    raise PeerGoneError("the other side is gone")
                filled += got
        except TimeoutError as exc:
            raise PeerSilentError("the other side does not answer") from exc
        except OSError as exc:
            raise PeerGoneError("the other side is gone") from exc
        return filled


def _whole_header(header: Mapping[str, Any], body: Body | None, size: int, shared: bool) -> bytes:
    fields = header if body is None else {**header, "shared": shared, "tensors": body.places}
    text = _to_json(fields).encode()
    if len(text) > MAX_HEADER_BYTES:
        raise OverLimitError(f"a message with a header of {len(text)} bytes is more than there may be")
    return _PREFIX.pack(len(text), size) + text


def _read_header(text: bytes) -> dict[str, Any]:
    try:
        plain = text.decode()
        header, end = _from_json(plain)
    except (ValueError, RecursionError) as exc:
        raise InvalidInputError("the header of a message is not JSON") from exc
    if not isinstance(header, dict) or plain[end:].strip(" "):
        raise InvalidInputError("the header of a message is not an object")
    return header
