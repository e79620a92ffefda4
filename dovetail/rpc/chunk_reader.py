# SPDX-License-Identifier: Apache-2.0
"""The asking side of FetchChunks: pieces in, whole chunks out, in memory of one chunk.

What came of a chunk when a stream broke is kept, so that a link which breaks more often than it brings a megabyte still
gets somewhere. Whether a chunk's bytes are right is for the caller to check: only here is nothing believed that would
cost memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import grpc.aio

from dovetail.errors import CancelledError, DeadlineError, IntegrityError, UnavailableError
from dovetail.pb.v1 import artifacts_pb2 as pb
from dovetail.pb.v1.artifacts_pb2_grpc import ArtifactCacheStub
from dovetail.rpc.rate_limit import RateLimit
from dovetail.rpc.status import translated_errors

PIECE_BYTES = 128 << 10
"""Asked for in one message: larger ones are no faster, and a slow link should not lose more when it breaks."""

ChunkCall: TypeAlias = "grpc.aio.UnaryStreamCall[pb.FetchChunksRequest, pb.Chunk]"


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """How patient a reader is.

    Attributes:
        piece_timeout_s: A stream that brings nothing for this long is dropped.
        chunk_timeout_s: A chunk that is not whole after this long ends the stream; what came of it is kept.
        piece_bytes: Largest message asked for; 0: whole chunks.
        max_bytes_per_s: What the service is asked to keep to; 0: no limit.
    """

    piece_timeout_s: float = 30.0
    chunk_timeout_s: float = 600.0
    piece_bytes: int = PIECE_BYTES
    max_bytes_per_s: int = 0


@dataclass(frozen=True, slots=True)
class ReceivedChunk:
    """A whole chunk as it came; nothing of it is checked but its size.

    Attributes:
        digest: What it is said to be; one of those asked for.
        codec: Form of `data`.
        data: The bytes.
    """

    digest: str
    codec: int
    data: bytes


@dataclass(slots=True)
class Unfinished:
    """What there is of a chunk whose stream broke; hand it to the next `read_chunks`.

    Attributes:
        digest: Of the chunk; "" if there is none.
        codec: Form of the pieces.
        end: Size of the whole in that form.
        pieces: From the start, without gaps.
    """

    digest: str = ""
    codec: int = 0
    end: int = 0
    pieces: list[bytes] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """How much there is."""
        return sum(map(len, self.pieces))

    def clear(self) -> None:
        """Forget it."""
        self.digest, self.codec, self.end, self.pieces = "", 0, 0, []


async def read_chunks(
    stub: ArtifactCacheStub,
    sizes: Mapping[str, int],
    *,
    settings: ReadSettings,
    unfinished: Unfinished,
    rate: RateLimit | None = None,
    peer: str = "the artifact cache",
) -> AsyncGenerator[ReceivedChunk, None]:
    """Ask for chunks in one stream, and hand out each as soon as it is whole.

    Args:
        stub: Of the service.
        sizes: Digest -> the most bytes that its chunk may have, in the order in which they are wanted.
        settings: How patient to be.
        unfinished: What an earlier stream left of a chunk; filled when this one breaks.
        rate: Paces what is taken, over several streams.
        peer: Who is asked, for errors.

    Raises:
        NotFoundError: The service lacks a chunk: the first in order that was not handed out.
        IntegrityError: It sent what was not asked for, or more of it.
        UnavailableError: The stream broke, or ended early.
        DeadlineError: Nothing came for too long.
    """
    if unfinished.digest not in sizes:
        unfinished.clear()
    order = sorted(sizes, key=lambda digest: digest != unfinished.digest)
    call = stub.FetchChunks(_request(order, settings, unfinished))
    received = 0
    try:
        with translated_errors(peer):
            async for message in _messages(call, settings):
                if rate is not None:
                    await rate.take(len(message.data))
                chunk = _joined(message, sizes, unfinished)
                if chunk is not None:
                    received += 1
                    yield chunk
    except CancelledError as exc:  # a server that was not listened to for too long can only reset the stream
        raise UnavailableError(f"{peer} ended the stream: {exc}") from exc
    finally:
        call.cancel()
    if received < len(order):
        raise UnavailableError(f"{peer} ended the stream after {received} of {len(order)} chunks")


def _request(order: list[str], settings: ReadSettings, unfinished: Unfinished) -> pb.FetchChunksRequest:
    return pb.FetchChunksRequest(
        digests=order,
        piece_bytes=settings.piece_bytes,
        max_bytes_per_s=settings.max_bytes_per_s,
        as_stored=True,
        first_offset=unfinished.size_bytes,
        first_codec=unfinished.codec,  # type: ignore[arg-type]  # the stubs want the enum's own type
    )


async def _messages(call: ChunkCall, settings: ReadSettings) -> AsyncIterator[pb.Chunk]:
    loop = asyncio.get_running_loop()
    chunk_ends_s = loop.time() + settings.chunk_timeout_s
    while True:
        try:
            async with asyncio.timeout(min(settings.piece_timeout_s, chunk_ends_s - loop.time())):
                message = await call.read()
        except TimeoutError:
            raise DeadlineError(f"no chunk arrived for {settings.piece_timeout_s:g} s") from None
        if not isinstance(message, pb.Chunk):  # the marker for the end of the stream
            return
        yield message
        if message.offset + len(message.data) >= message.encoded_bytes:
            chunk_ends_s = loop.time() + settings.chunk_timeout_s


def _growth(size_bytes: int) -> int:
    """What compression may add to bytes that do not compress. Source: ZSTD_COMPRESSBOUND in zstd.h."""
    return (size_bytes >> 8) + 128


def _joined(message: pb.Chunk, sizes: Mapping[str, int], unfinished: Unfinished) -> ReceivedChunk | None:
    """The chunk that this message completes, or None."""
    if message.digest not in sizes:
        raise IntegrityError(f"the service sent chunk {message.digest[:12]!r}, which was not asked for")
    end = message.encoded_bytes or len(message.data)
    limit_bytes = sizes[message.digest] + _growth(sizes[message.digest])
    if not message.offset:
        unfinished.clear()  # a service that does not resume begins anew, and so does the next chunk
        unfinished.digest, unfinished.codec, unfinished.end = message.digest, int(message.codec), end
    expected = (unfinished.digest, unfinished.codec, unfinished.end, unfinished.size_bytes)
    total = message.offset + len(message.data)
    if (message.digest, message.codec, end, message.offset) != expected or total > end or end > limit_bytes:
        unfinished.clear()
        raise IntegrityError(f"the service sent pieces of chunk {message.digest[:12]} that do not fit together")
    if not message.data and end:
        raise IntegrityError(f"the service sent an empty piece of chunk {message.digest[:12]}")
    unfinished.pieces.append(message.data)
    if total < end:
        return None
    chunk = ReceivedChunk(unfinished.digest, unfinished.codec, b"".join(unfinished.pieces))
    unfinished.clear()
    return chunk
