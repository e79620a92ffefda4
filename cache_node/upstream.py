# SPDX-License-Identifier: Apache-2.0
"""Chunks from the service above, asked for in batches: over a long line one stream of many chunks is what is fast.

Each chunk is asked for once however many wait for it, and checked before anybody gets it. A stream that breaks is
opened again at once if it brought anything; else those who wait are told, and ask again when they like.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque

import grpc.aio

from dovetail.digest import check_digest, sha256_hex
from dovetail.errors import DovetailError, IntegrityError, NotFoundError, UnavailableError
from dovetail.pb.v1.artifacts_pb2_grpc import ArtifactCacheStub
from dovetail.rpc.chunk_reader import ReadSettings, ReceivedChunk, Unfinished, read_chunks
from dovetail.rpc.rate_limit import RateLimit
from dovetail.store.codec import MAX_CHUNK_BYTES, unpack

_log = logging.getLogger(__name__)

STREAMS = 4
"""Streams at once: one that waits for a slow chunk does not hold up the others."""

BATCH = 32
"""Chunks in one stream: 32 MiB, so that a line is busy and a new wish waits for seconds at most."""


class UpstreamChunks:
    """The chunks of the service above. Belongs to one event loop; safe for concurrent tasks.

    Args:
        channel: To the service.
        name: Its address, for errors.
        bytes_per_s: Most that is taken from it; 0: no limit.

    Attributes:
        chunks: How many came since the start.
        bytes: What they took on the wire.
    """

    def __init__(self, channel: grpc.aio.Channel, name: str, *, bytes_per_s: int = 0) -> None:
        self.chunks = 0
        self.bytes = 0
        self._stub = ArtifactCacheStub(channel)
        self._name = name
        self._reading = ReadSettings(max_bytes_per_s=bytes_per_s)
        self._rate = RateLimit(bytes_per_s)
        self._waiting: dict[str, asyncio.Future[bytes | None]] = {}
        self._queue: deque[str] = deque()
        self._broken: OrderedDict[str, Unfinished] = OrderedDict()
        self._runners: set[asyncio.Task[None]] = set()

    async def get(self, digest: str) -> bytes | None:
        """The plain bytes, checked; None if upstream does not have them.

        Raises:
            UnavailableError: Upstream does not answer, or sent wrong bytes.
        """
        waiting = self._waiting.get(check_digest(digest))
        if waiting is None:
            waiting = self._waiting[digest] = asyncio.get_running_loop().create_future()
            self._queue.append(digest)
            if len(self._runners) < STREAMS:
                runner = asyncio.create_task(self._run())
                self._runners.add(runner)
                runner.add_done_callback(self._runners.discard)
        return await asyncio.shield(waiting)

    async def aclose(self) -> None:
        """Stop all streams."""
        runners = list(self._runners)
        for runner in runners:
            runner.cancel()
        await asyncio.gather(*runners, return_exceptions=True)
        for digest in list(self._waiting):
            self._fail(digest, UnavailableError("this cache node is stopping"))

    async def _run(self) -> None:
        while self._queue:
            batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
            before = self.chunks
            error = await self._stream(batch)
            left = [digest for digest in batch if digest in self._waiting]
            if isinstance(error, NotFoundError) and left:
                self._waiting.pop(left[0]).set_result(None)
                self._queue.extendleft(reversed(left[1:]))
            elif error is not None and self.chunks > before:
                self._queue.extendleft(reversed(left))
            elif error is not None:
                _log.warning("upstream.lost chunks=%d why=%r", len(left), str(error))
                for digest in left:
                    self._fail(digest, error)

    async def _stream(self, batch: list[str]) -> DovetailError | None:
        unfinished = next((self._broken.pop(digest) for digest in batch if digest in self._broken), Unfinished())
        chunks = read_chunks(
            self._stub,
            dict.fromkeys(batch, MAX_CHUNK_BYTES),
            settings=self._reading,
            unfinished=unfinished,
            rate=self._rate,
            peer=f"the service at {self._name}",
        )
        try:
            async for chunk in chunks:
                await self._take(chunk)
        except DovetailError as exc:
            if unfinished.digest:
                self._broken[unfinished.digest] = unfinished
                while len(self._broken) > STREAMS:
                    self._broken.popitem(last=False)
            return exc
        return None

    async def _take(self, chunk: ReceivedChunk) -> None:
        try:
            data = await asyncio.to_thread(_checked, chunk)
        except IntegrityError as exc:
            _log.warning("upstream.chunk_corrupt digest=%s why=%r", chunk.digest, str(exc))
            self._fail(chunk.digest, UnavailableError(f"{self._name} sent wrong bytes for chunk {chunk.digest[:12]}"))
            return
        self.chunks += 1
        self.bytes += len(chunk.data)
        waiting = self._waiting.pop(chunk.digest, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(data)

    def _fail(self, digest: str, error: DovetailError) -> None:
        waiting = self._waiting.pop(digest, None)
        if waiting is not None and not waiting.done():
            waiting.set_exception(error if isinstance(error, UnavailableError) else UnavailableError(str(error)))
            waiting.exception()  # seen, also if nobody waits any more


def _checked(chunk: ReceivedChunk) -> bytes:
    data = unpack(chunk.codec, chunk.data)
    if sha256_hex(data) != chunk.digest:
        raise IntegrityError("sha256 differs")
    return data
