# SPDX-License-Identifier: Apache-2.0
"""As much of HTTP/2 and gRPC as a load generator needs, so that it costs little beside the server that it measures.

Frames are built and taken apart here; headers of answers are not decoded, because a gRPC answer without an error is one
that has a message. Not a client: nothing is checked that a server of gRPC's own library gets right by itself.

Source: RFC 9113 (frames, flow control), RFC 7541 (literals without indexing), gRPC over HTTP2 (five bytes before each
message).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_WINDOW = (1 << 31) - 1
DEFAULT_WINDOW = 65535
DEFAULT_FRAME = 16384
SETTINGS_INITIAL_WINDOW_SIZE, SETTINGS_MAX_FRAME_SIZE = 4, 5
HEAD = struct.Struct(">HBBBL")
"""Length (high 16 bits, low 8 bits), type, flags, stream."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    size = len(payload)
    return HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def opening() -> bytes:
    """What a client sends first: windows so large that the server never waits for us."""
    settings = struct.pack(">HL", SETTINGS_INITIAL_WINDOW_SIZE, MAX_WINDOW)
    return b"".join(
        (PREFACE, frame(SETTINGS, 0, 0, settings), window_update(0, MAX_WINDOW - DEFAULT_WINDOW))
    )  # fmt: skip


def window_update(stream: int, size: int) -> bytes:
    """Let the peer send that much more."""
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">L", size))


def request_headers(path: str, authority: str, metadata: Sequence[tuple[str, str]] = ()) -> bytes:
    """Header block of a gRPC call."""
    block = [b"\x83\x86", _indexed_name(4, path), _indexed_name(1, authority)]
    block += [_indexed_name(31, "application/grpc"), _literal("te", "trailers")]
    block += [_literal(name, value) for name, value in metadata]
    return b"".join(block)


def message(data: bytes) -> bytes:
    """A gRPC message, uncompressed."""
    return struct.pack(">BL", 0, len(data)) + data


def _literal(name: str, value: str) -> bytes:
    return b"\x00" + _text(name) + _text(value)


def _indexed_name(index: int, value: str) -> bytes:
    return (bytes((index,)) if index < 15 else bytes((15, index - 15))) + _text(value)


def _text(text: str) -> bytes:
    data = text.encode()
    if len(data) > 126:
        raise ValueError("a header is too long for one byte of length")
    return bytes((len(data),)) + data
