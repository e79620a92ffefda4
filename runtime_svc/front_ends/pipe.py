# SPDX-License-Identifier: Apache-2.0
"""One end of the socket pair between a front end and the main process: frames in, frames out.

Everything that is sent within a turn of the event loop leaves in one system call, and everything that has come is read
in one. Nothing here waits: what the kernel does not take is kept, and streams bound it by credit.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable
from itertools import islice

from dovetail.errors import InvalidInputError
from runtime_svc.front_ends.frames import FrameParser, header_of

_PIECES_AT_ONCE = 512  # below the system's IOV_MAX of 1024
_JOINED_BYTES = 16 << 10
"""Bodies up to this size are joined to their header, which costs less than a piece of its own."""

_BUFFER_BYTES = 4 << 20
"""Asked of the kernel for each direction; it gives what the system's limit allows."""

OnFrame = Callable[[int, int, int, float, bytes], None]


class FramePipe:
    """Belongs to its event loop, and reads from the beginning.

    Args:
        sock: Connected stream socket, owned from now on.
        on_frame: Called with each frame that comes; what is wrong with one it says with an InvalidInputError.
        on_lost: Called once when the other side is gone, with "", or has sent what is no frame, with what that was.
            Nothing more comes then. Not called after `close`.
    """

    def __init__(self, sock: socket.socket, on_frame: OnFrame, on_lost: Callable[[str], None]) -> None:
        sock.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        self._sock = sock
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._parser = FrameParser()
        self._out: deque[bytes | memoryview] = deque()
        self._flushing = False
        self._blocked = False
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._read)

    def send(self, kind: int, number: int = 0, body: bytes = b"", *, flags: int = 0, value: float = 0.0) -> None:
        """Send a frame; nothing happens if the other side is gone.

        Raises:
            InvalidInputError: The body is larger than its kind may have.
        """
        header = header_of(kind, number, len(body), flags=flags, value=value)
        if self._closed:
            return
        if len(body) <= _JOINED_BYTES:
            self._out.append(header + body)
        else:
            self._out += (header, body)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Send what the kernel takes at once, and close."""
        if not self._closed:
            self._flush()
        self._shut()

    def _flush(self) -> None:
        out = self._out
        try:
            while out:
                self._drop(self._sock.sendmsg(list(islice(out, _PIECES_AT_ONCE))))
        except BlockingIOError:
            if not self._blocked:
                self._blocked = True
                self._loop.add_writer(self._sock, self._flush)
            return
        except OSError:
            self._lose("")
            return
        self._flushing = False
        if self._blocked:
            self._blocked = False
            self._loop.remove_writer(self._sock)

    def _drop(self, sent: int) -> None:
        out = self._out
        while sent:
            piece = out.popleft()
            if len(piece) > sent:
                out.appendleft(memoryview(piece)[sent:])
                return
            sent -= len(piece)

    def _read(self) -> None:
        try:
            count = self._sock.recv_into(self._parser.room())
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self._lose("")
            return
        try:
            for frame in self._parser.take(count):
                self._on_frame(*frame)
        except InvalidInputError as error:
            self._lose(str(error))

    def _lose(self, reason: str) -> None:
        if not self._closed:
            self._shut()
            self._on_lost(reason)

    def _shut(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._blocked = False
        self._out.clear()
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
