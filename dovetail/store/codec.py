# SPDX-License-Identifier: Apache-2.0
"""How bytes are kept and sent: zstd where it pays, else plain.

Pure functions, apart from the stores because the wire uses the same ones. Nothing here trusts a size that the data
declares: a reader says how much it accepts and no more is ever allocated.
"""

from __future__ import annotations

from enum import IntEnum

import zstandard

from dovetail.errors import IntegrityError

MIN_GAIN = 0.05  # a chunk that shrinks less is not worth the reader's time (engines and int8 weights hardly shrink)
LEVEL = 3  # zstd's own default: several hundred MB/s, higher levels gain little on weights

MAX_CHUNK_BYTES = 1 << 20
"""Largest plain chunk that any store keeps; `artifact.CHUNK_BYTES` is a little less."""

_WINDOW_BYTES = 8 << 20  # more than level 3 uses for a chunk; refuses frames that ask the reader for more memory


class Codec(IntEnum):
    """Encoding of some bytes; the numbers are those of `ChunkCodec` in artifacts.proto and are stored on disk."""

    PLAIN = 0
    ZSTD = 1


def pack(data: bytes) -> tuple[Codec, bytes]:
    """The shorter form of the data: zstd if that gains at least 5 %, else the data itself."""
    packed = zstandard.ZstdCompressor(level=LEVEL).compress(data)
    if len(packed) <= len(data) * (1 - MIN_GAIN):
        return Codec.ZSTD, packed
    return Codec.PLAIN, data


def unpack(codec: int, data: bytes, *, limit_bytes: int = MAX_CHUNK_BYTES) -> bytes:
    """Undo `pack`: `unpack(*pack(data)) == data`.

    Raises:
        IntegrityError: An unknown codec, damaged data, or more than the limit.
    """
    if codec == Codec.PLAIN:
        plain = data
    elif codec == Codec.ZSTD:
        plain = _decompress(data, limit_bytes)
    else:
        raise IntegrityError(f"stored bytes have the unknown encoding {codec}; written by a newer version?")
    if len(plain) > limit_bytes:
        raise IntegrityError(f"stored bytes hold {len(plain)} bytes, at most {limit_bytes} were expected")
    return plain


def plain_size(codec: Codec, data: bytes) -> int:
    """How long `unpack` will say the data is: at once, from what is written at its beginning.

    Raises:
        IntegrityError: Damaged data, or more than any chunk has.
    """
    if codec is Codec.PLAIN:
        return len(data)
    try:
        declared = int(zstandard.get_frame_parameters(data).content_size)
    except zstandard.ZstdError as exc:
        raise IntegrityError(f"compressed bytes are damaged: {exc}") from exc
    if not 0 <= declared <= MAX_CHUNK_BYTES:
        raise IntegrityError(f"compressed bytes declare {declared} bytes, at most {MAX_CHUNK_BYTES} were expected")
    return declared


def encode(data: bytes) -> bytes:
    """One byte that names the codec, then the packed data."""
    codec, packed = pack(data)
    return bytes((codec,)) + packed


def decode(stored: bytes, *, limit_bytes: int = MAX_CHUNK_BYTES) -> bytes:
    """Undo `encode`: `decode(encode(data)) == data`. Raises as `unpack`."""
    if not stored:
        raise IntegrityError("stored bytes are empty: not even the encoding is there")
    return unpack(stored[0], stored[1:], limit_bytes=limit_bytes)


def _decompress(data: bytes, limit_bytes: int) -> bytes:
    try:
        # The library allocates what the frame declares, whatever max_output_size says, so that is looked at first.
        declared = zstandard.get_frame_parameters(data).content_size
        if declared not in (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR) and declared > limit_bytes:
            raise IntegrityError(f"compressed bytes declare {declared} bytes, at most {limit_bytes} were expected")
        reader = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
        return reader.decompress(data, max_output_size=limit_bytes, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise IntegrityError(f"compressed bytes are damaged: {exc}") from exc
