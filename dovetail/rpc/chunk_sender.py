# SPDX-License-Identifier: Apache-2.0
"""The serving side of FetchChunks: chunks in pieces, in memory that does not grow with the number of readers.

Three bounds hold together: the chunks that the store below keeps for all, the whole chunks that fast readers hold while
they take them piece by piece, and the pieces that were handed to connections and not yet taken. A reader that is slow
holds one piece and nothing else: its chunk is read again, or found among those kept, when it takes the next one. Every
reader that is let in has room for a small piece, so none ever waits for another; one that takes its pieces quickly gets
larger ones while there is room. A reader that takes nothing for too long is ended, because it holds a place.

Used by the compiler service and by the cache node of a site; what a chunk means is nobody's business here.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass

from dovetail.digest import check_digest
from dovetail.errors import BusyError, InvalidInputError, NotFoundError
from dovetail.pb.v1 import artifacts_pb2 as pb
from dovetail.rpc.byte_budget import ByteBudget
from dovetail.rpc.chunk_frames import Write, chunk_frame
from dovetail.rpc.rate_limit import RateLimit
from dovetail.settings import SettingsReader
from dovetail.store.coalesced import CoalescedChunkStore
from dovetail.store.codec import MAX_CHUNK_BYTES, Codec
from dovetail.store.encoded import EncodedChunk, plain_form

_log = logging.getLogger(__name__)

MAX_DIGESTS = 4096
"""Digests in one FetchChunks: 4 GiB of content, 260 KiB of request."""

READ_AHEAD = 4
"""Chunks read ahead of a fast reader, which hides the store's latency."""

DIGEST_BYTES = 32
"""Of a sha256."""

STALL_S = 1.0
"""A reader that has not taken a piece for this long is slow: it must not hold a whole chunk."""

QUICK_S = 0.25
"""A reader that takes a piece within this time gets a larger one next."""

_RETRY_S = (0.5, 5.0)
"""Between these a reader that is sent away comes back, so that a thousand do not come at once."""


@dataclass(frozen=True, slots=True)
class SendLimits:
    """What serving chunks may cost.

    Attributes:
        memory_bytes: Of chunks and pieces together. Half is for pieces, of which gRPC holds a copy: an eighth for the
            small piece that each reader may have, an eighth for larger ones. The rest is for whole chunks.
        streams: Readers at once; more are sent away for a while.
        bytes_per_s: To all readers together; 0: no limit.
        piece_timeout_s: A reader that takes nothing for this long is ended.
    """

    memory_bytes: int = 128 << 20
    streams: int = 1024
    bytes_per_s: int = 0
    piece_timeout_s: float = 30.0

    @property
    def keep_bytes(self) -> int:
        """Of `memory_bytes`, for chunks that the store below keeps for all."""
        return self.memory_bytes * 5 // 16

    @property
    def hold_bytes(self) -> int:
        """Of `memory_bytes`, for chunks that fast readers hold while they take them piece by piece."""
        return self.memory_bytes * 3 // 16

    @property
    def small_piece_bytes(self) -> int:
        """What every reader may have outstanding: 16 KiB by default."""
        return max(self.memory_bytes // 8 // self.streams, 1)

    @staticmethod
    def read(read: SettingsReader) -> SendLimits:
        """Read DOVETAIL_FETCH_MEMORY_BYTES, _STREAMS, _BYTES_PER_S and _TIMEOUT_S of whoever hands out chunks."""
        usual = SendLimits()
        return SendLimits(
            memory_bytes=read.integer("DOVETAIL_FETCH_MEMORY_BYTES", usual.memory_bytes, low=8 << 20, high=1 << 40),
            streams=read.integer("DOVETAIL_FETCH_STREAMS", usual.streams, low=1, high=1 << 14),
            bytes_per_s=read.integer("DOVETAIL_FETCH_BYTES_PER_S", usual.bytes_per_s, low=0, high=1 << 40),
            piece_timeout_s=read.number("DOVETAIL_FETCH_TIMEOUT_S", usual.piece_timeout_s, low=0.1, high=3600.0),
        )


class ChunkSender:
    """Sends chunks to many readers. Belongs to one event loop.

    Args:
        store: Where chunks are; it should keep as much as the limits say.
        limits: What it may cost.

    Attributes:
        streams: Readers now.
        slow: Those of them that let their last piece wait.
        pieces: Bytes of larger pieces that were handed to connections and not yet taken.
        held: Bytes of chunks that fast readers hold.
        sent_bytes: Bytes of chunks that connections took since the start.
    """

    def __init__(self, store: CoalescedChunkStore, limits: SendLimits | None = None) -> None:
        self.limits = limits or SendLimits()
        self.streams = 0
        self.slow = 0
        self.pieces = ByteBudget(max(self.limits.memory_bytes // 8, MAX_CHUNK_BYTES))
        self.held = ByteBudget(self.limits.hold_bytes)
        self.sent_bytes = 0
        self.store = store
        self.rate = RateLimit(self.limits.bytes_per_s)

    async def send(self, request: pb.FetchChunksRequest, write: Write) -> None:
        """Send what is asked for, in that order.

        Raises:
            InvalidInputError: Too many, or not digests.
            NotFoundError: No tier has the chunk; those before it were sent.
            BusyError: Too many readers, or this one took nothing for too long.
            UnavailableError: The store does not answer.
        """
        if len(request.digests) > MAX_DIGESTS:
            raise InvalidInputError(f"{len(request.digests)} chunks asked for at once, at most {MAX_DIGESTS} are sent")
        for digest in request.digests:
            check_digest(digest, "chunk digest")
        if self.streams >= self.limits.streams:
            raise _busy(f"{self.streams} readers are being served, which is the most")
        self.streams += 1
        try:
            await _Stream(self, request, write).run()
        finally:
            self.streams -= 1

    def read_ahead(self) -> int:
        """How many chunks may be read ahead of a fast reader, so that those read do not push out one another."""
        fast = max(self.streams - self.slow, 1)
        return min(READ_AHEAD, self.store.keep_bytes // (2 * MAX_CHUNK_BYTES * fast))


class _Stream:
    """One reader. It is fast once it took a piece at once, and slow while it lets one wait."""

    def __init__(self, sender: ChunkSender, request: pb.FetchChunksRequest, write: Write) -> None:
        self._sender = sender
        self._write = write
        self._digests = b"".join(bytes.fromhex(digest) for digest in request.digests)  # a third of what text takes
        self._most_bytes = min(request.piece_bytes, MAX_CHUNK_BYTES)
        self._piece_bytes = min(self._most_bytes, sender.limits.small_piece_bytes)
        self._as_stored = request.as_stored
        self._resumed = (int(request.first_codec), request.first_offset if request.piece_bytes else 0)
        self._rate = RateLimit(request.max_bytes_per_s)
        self._held: EncodedChunk | None = None
        self._slow = False

    async def run(self) -> None:
        count = len(self._digests) // DIGEST_BYTES
        try:
            for position in range(count):
                if not self._slow:
                    ahead = range(position, min(position + 1 + self._sender.read_ahead(), count))
                    self._sender.store.prefetch([self._digest(index) for index in ahead])
                await self._send_chunk(self._digest(position), resumed=position == 0)
                self._release()
        finally:
            self._release()
            self._mark(slow=False)

    def _digest(self, position: int) -> str:
        return self._digests[position * DIGEST_BYTES : (position + 1) * DIGEST_BYTES].hex()

    async def _send_chunk(self, digest: str, *, resumed: bool) -> None:
        """Room first, then the bytes: whoever waits for room must hold nothing."""
        form: tuple[Codec, int] | None = None
        offset = 0
        while form is None or offset < form[1]:
            size_bytes, taken_bytes = await self._take_room()
            try:
                chunk = self._held or await self._read(digest)
                if form is None:
                    form = (chunk.codec, len(chunk.data))
                    offset = self._first_offset(chunk) if resumed else 0
                    self._hold(chunk)
                elif form != (chunk.codec, len(chunk.data)):
                    raise _busy(f"chunk {digest[:12]} came into another form while it was sent")
                size_bytes = min(size_bytes, form[1] - offset)
                frame = chunk_frame(digest, chunk, offset, size_bytes)
                del chunk  # a reader that is slow must hold no more than its piece
                await self._hand_over(frame)
                del frame
            finally:
                self._sender.pieces.give_back(taken_bytes)
            offset += size_bytes
            await self._tell_sent(size_bytes)

    async def _take_room(self) -> tuple[int, int]:
        """How large the next piece may be, and how much of that was taken from what all share."""
        if not self._most_bytes:  # a client of old, which wants whole chunks and waits for its turn
            await self._sender.pieces.take(MAX_CHUNK_BYTES)
            return MAX_CHUNK_BYTES, MAX_CHUNK_BYTES
        small_bytes = min(self._most_bytes, self._sender.limits.small_piece_bytes)
        if self._piece_bytes > small_bytes and self._sender.pieces.try_take(self._piece_bytes):
            return self._piece_bytes, self._piece_bytes
        return small_bytes, 0

    async def _tell_sent(self, size_bytes: int) -> None:
        self._sender.sent_bytes += size_bytes
        await self._rate.take(size_bytes)
        await self._sender.rate.take(size_bytes)

    async def _read(self, digest: str) -> EncodedChunk:
        chunk = await self._sender.store.get_encoded(digest)
        if chunk is None:
            raise NotFoundError(f"chunk {digest} is gone from every tier; fetch the manifest again, or build it again")
        return chunk if self._as_stored else await plain_form(chunk)

    async def _hand_over(self, frame: bytes) -> None:
        """Give a piece to the connection; returns when it has taken it."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        timer = loop.call_later(STALL_S, self._stalled)
        try:
            async with asyncio.timeout(self._sender.limits.piece_timeout_s):
                await self._write(frame)
        except TimeoutError:
            seconds = self._sender.limits.piece_timeout_s
            _log.info("chunks.reader_stalled seconds=%g", seconds)
            raise _busy(f"the reader took nothing for {seconds:g} s; ask again for what is missing") from None
        finally:
            timer.cancel()
        seconds = loop.time() - started_s
        self._mark(slow=seconds >= STALL_S)
        if self._slow:
            self._piece_bytes = max(
                self._piece_bytes // 2, min(self._most_bytes, self._sender.limits.small_piece_bytes)
            )
        elif seconds < QUICK_S:
            self._piece_bytes = min(self._piece_bytes * 2, self._most_bytes)

    def _stalled(self) -> None:
        self._mark(slow=True)
        self._release()

    def _mark(self, *, slow: bool) -> None:
        self._sender.slow += slow - self._slow
        self._slow = slow

    def _hold(self, chunk: EncodedChunk) -> None:
        if not self._slow and self._most_bytes and self._sender.held.try_take(len(chunk.data)):
            self._held = chunk

    def _release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._sender.held.give_back(len(held.data))

    def _first_offset(self, chunk: EncodedChunk) -> int:
        codec, offset = self._resumed
        return offset if codec == chunk.codec and offset < len(chunk.data) else 0


def _busy(text: str) -> BusyError:
    return BusyError(text, retry_after_s=random.uniform(*_RETRY_S))  # noqa: S311 - spreads load, keeps no secret
