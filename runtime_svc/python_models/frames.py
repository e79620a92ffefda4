# SPDX-License-Identifier: Apache-2.0
"""Messages between a node and the process of a Python model: a JSON header and raw tensors. Nothing is ever pickled.

    uint32 bytes of the header | uint64 bytes of the body | header, padded with spaces | body

The header is a JSON object with `op` and, if there are tensors, `tensors` (see `layout`). `shared` says that the body
is in shared memory instead of the message. The sides take turns, so there is never more than one message on its way.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dovetail.errors import DovetailError, InvalidInputError, OverLimitError
from dovetail.tensor import Array
from runtime_svc.python_models.layout import ALIGNMENT, Body, Place, arrays_over, read_places
from runtime_svc.python_models.shared_pages import SharedPages

MAX_HEADER_BYTES = 1 << 20  # names and shapes of the largest signature are far below
MAX_BODY_BYTES = 4 << 30
"""Most bytes of tensors in a message: above what any transport of the protocol brings in."""

_PREFIX = struct.Struct("<IQ")
_to_json = json.JSONEncoder(separators=(",", ":")).encode
_from_json = json.JSONDecoder().raw_decode
_PIECES_AT_ONCE = 512  # below the system's IOV_MAX of 1024
_READ_BYTES = 64 << 10  # most messages whole, in one call


class PeerGoneError(DovetailError):
    """The other side has ended or closed the connection."""


class PeerSilentError(DovetailError):
    """The other side did not answer in time."""


@dataclass(slots=True)
class Message:
    """One message as received.

    Attributes:
        header: Its JSON object.
        body: What its tensors are in; None if they are in shared memory.
    """

    header: dict[str, Any]
    body: Array | None

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
        self._placed: tuple[list[Place], str] = ([], "[]")
        self._known: tuple[object, int, list[Place]] = ([], 0, [])

    def close(self) -> None:
        """Close the socket; whoever waits for the other side is told that it is gone."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        with self._in_use:  # not while a call is under way: its descriptor could be another file's by then
            self._sock.close()

    def set_timeout(self, seconds: float | None) -> None:
        """Longest wait of each following read and write."""
        with contextlib.suppress(OSError):  # closed: the next call says so
            self._sock.settimeout(seconds)

    def send(self, header: Mapping[str, object], body: Body | None = None, *, shared: bool = False) -> None:
        """Send a message.

        Args:
            header: Its JSON object.
            body: Its tensors.
            shared: They are in shared memory already, and only their places are sent.

        Raises:
            PeerGoneError: The other side is gone.
            PeerSilentError: It does not read.
            OverLimitError: It is larger than a message may be.
        """
        text = _to_json(header)
        if body is not None:
            if body.places != self._placed[0]:  # else they are like those before
                self._placed = (body.places, _to_json(body.places))
            text = f'{text[:-1]},"shared":{"true" if shared else "false"},"tensors":{self._placed[1]}}}'
        pieces = _pieces(text, None if shared else body)
        try:
            with self._in_use:
                sent = self._sock.sendmsg(pieces[:_PIECES_AT_ONCE])
                if sent < sum(len(piece) for piece in pieces):
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
            header, body = self._receive()
        fields = _read_header(header)
        return Message(fields, None if fields.get("shared") is True else body)

    def arrays(self, message: Message, shared: SharedPages | None = None) -> dict[str, Array]:
        """A message's tensors by name, as views of it or of the shared memory.

        Raises:
            InvalidInputError: What the header says about them is wrong, or there is no shared memory.
        """
        body = message.body if message.body is not None else shared.array if shared is not None else None
        if body is None:
            raise InvalidInputError("tensors are said to be in shared memory, and there is none")
        entries, size = message.header.get("tensors", []), body.nbytes
        if entries != self._known[0] or size != self._known[1]:  # else they are like those before: checked
            self._known = (entries, size, read_places(entries, size))
        return arrays_over(self._known[2], body)

    def _receive(self) -> tuple[memoryview, Array]:
        read = memoryview(self._read)
        got = self._read_into(read, _PREFIX.size)
        header_bytes, body_bytes = _PREFIX.unpack_from(self._read)
        if header_bytes > MAX_HEADER_BYTES or body_bytes > MAX_BODY_BYTES:
            raise OverLimitError(f"a message of {header_bytes} and {body_bytes} bytes is more than there may be")
        size = header_bytes + body_bytes
        content = np.empty(size, dtype=np.uint8)
        here = got - _PREFIX.size
        if here > size:
            raise InvalidInputError("two messages came where there should be one")
        content.data[:here] = read[_PREFIX.size : got]
        if here < size:
            self._read_into(content.data[here:], size - here)
        return content.data[:header_bytes], content[header_bytes:]

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


def _pieces(text: str, body: Body | None) -> list[Any]:
    header = text.encode()
    header += b" " * (-len(header) % ALIGNMENT)  # so that the body begins as well aligned as the reader's buffer
    size = 0 if body is None else body.size_bytes
    if len(header) > MAX_HEADER_BYTES or size > MAX_BODY_BYTES:
        raise OverLimitError(f"a message of {len(header)} and {size} bytes is more than there may be")
    first = _PREFIX.pack(len(header), size) + header
    return [first] if body is None else [first, *body.buffers()]


def _read_header(text: memoryview) -> dict[str, Any]:
    try:
        plain = str(text, "utf-8")
        header, end = _from_json(plain)
    except (ValueError, RecursionError) as exc:
        raise InvalidInputError("the header of a message is not JSON") from exc
    if not isinstance(header, dict) or plain[end:].strip(" "):
        raise InvalidInputError("the header of a message is not an object")
    return header
