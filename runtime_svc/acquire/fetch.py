# SPDX-License-Identifier: Apache-2.0
"""Bringing an artifact's missing chunks here, each checked before it is kept.

Only what is missing is asked for, so a dropped stream, a killed process or a reboot costs what was in flight. A
chunk is never larger in memory than the manifest says, compressed or not; about three of them are held at a time.
Where the bytes end up is the local cache's business; what they mean is nobody's here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TypeAlias

import grpc.aio

from dovetail.artifact import FileEntry, Manifest
from dovetail.errors import DeadlineError, IntegrityError, UnavailableError
from dovetail.pb.v1 import artifacts_pb2
from dovetail.pb.v1.artifacts_pb2_grpc import ArtifactCacheStub
from dovetail.rpc.status import translated_errors
from dovetail.store.codec import unpack
from runtime_svc.acquire.backoff import Backoff
from runtime_svc.acquire.local_cache import LocalCache
from runtime_svc.acquire.partial import PartialFile

_log = logging.getLogger(__name__)

REQUEST_CHUNKS = 256
"""Chunks asked for in one stream: 255 MiB; the service takes up to 4096."""

MAX_BAD_COPIES = 3
"""Copies of one chunk that may arrive with wrong bytes before its source is given up."""


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """How patient a fetch is.

    Attributes:
        chunk_timeout_s: A stream that brings no chunk for this long is dropped and asked for again.
        idle_attempts: Attempts in a row that may bring nothing before the fetch ends as unavailable.
    """

    chunk_timeout_s: float = 30.0
    idle_attempts: int = 6


@dataclass(slots=True)
class FetchReport:
    """What a fetch did; grows while it runs.

    Attributes:
        total_bytes: Size of all files of the artifact.
        present_bytes: How much of that is here and verified.
        chunks_fetched: Chunks that arrived and were right.
        chunks_corrupt: Chunks that arrived with wrong bytes and were thrown away.
        streams: Streams that were opened.
    """

    total_bytes: int = 0
    present_bytes: int = 0
    chunks_fetched: int = 0
    chunks_corrupt: int = 0
    streams: int = 0


Progress = Callable[[FetchReport], None]
ChunkCall: TypeAlias = "grpc.aio.UnaryStreamCall[artifacts_pb2.FetchChunksRequest, artifacts_pb2.Chunk]"


class ChunkFetcher:
    """Fetches artifacts over one channel; several fetches may run at once.

    Args:
        channel: To a service that has `dovetail.v1.ArtifactCache`.
        cache: Where files go.
        settings: How patient to be.
        backoff: Makes the pauses between attempts.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        cache: LocalCache,
        *,
        settings: FetchSettings | None = None,
        backoff: Callable[[], Backoff] = Backoff,
    ) -> None:
        self._stub = ArtifactCacheStub(channel)
        self._cache = cache
        self._settings = settings or FetchSettings()
        self._backoff = backoff
        self._locks: dict[str, asyncio.Lock] = {}

    async def fetch(self, manifest: Manifest, progress: Progress | None = None) -> FetchReport:
        """Bring every file of an artifact here; room must have been reserved.

        Raises:
            NotFoundError: The service lost a chunk.
            IntegrityError: A chunk came wrong MAX_BAD_COPIES times, or the manifest contradicts itself.
            OverLimitError: The disk is full.
            UnavailableError: The service does not answer; what came so far is kept.
        """
        report = FetchReport(total_bytes=sum(entry.size_bytes for entry in manifest.files))
        for entry in manifest.files:
            lock = self._locks.setdefault(entry.digest, asyncio.Lock())
            async with lock:
                await self._fetch_file(entry, report, progress)
        _log.info(
            "fetch.done artifact=%s bytes=%d chunks=%d corrupt=%d streams=%d",
            manifest.artifact_key, report.total_bytes, report.chunks_fetched, report.chunks_corrupt, report.streams,
        )  # fmt: skip
        return report

    async def _fetch_file(self, entry: FileEntry, report: FetchReport, progress: Progress | None) -> None:
        if await asyncio.to_thread(self._cache.has, entry):
            report.present_bytes += entry.size_bytes
            return
        partial = await asyncio.to_thread(self._cache.open_partial, entry)
        try:
            report.present_bytes += partial.present_bytes
            transfer = _Transfer(entry, partial, report, progress)
            await self._fetch_missing(transfer)
            await asyncio.to_thread(partial.finish, self._cache.path(entry.digest))
        finally:
            await asyncio.to_thread(partial.close)

    async def _fetch_missing(self, transfer: _Transfer) -> None:
        backoff = self._backoff()
        while missing := transfer.missing():
            before = transfer.report.chunks_fetched
            reason = await self._attempt(transfer, missing[:REQUEST_CHUNKS])
            if transfer.report.chunks_fetched > before:
                backoff.reset()
            elif backoff.attempts + 1 >= self._settings.idle_attempts:
                raise UnavailableError(
                    f"file {transfer.entry.name} misses {len(missing)} of {len(transfer.entry.chunks)} chunks "
                    f"after {self._settings.idle_attempts} attempts without progress; last: {reason}"
                )
            if reason and transfer.missing():
                _log.warning("fetch.interrupted file=%s missing=%d why=%r", transfer.entry.name, len(missing), reason)
                await backoff.pause()

    async def _attempt(self, transfer: _Transfer, indices: tuple[int, ...]) -> str:
        """One stream; returns why it ended early, "" if it brought all that was asked for."""
        try:
            await self._stream(transfer, indices)
        except (UnavailableError, DeadlineError) as exc:
            return str(exc)
        return "the stream ended early or brought wrong bytes" if set(indices) & set(transfer.missing()) else ""

    async def _stream(self, transfer: _Transfer, indices: tuple[int, ...]) -> None:
        """A chunk is checked and written in a thread while the next one arrives."""
        wanted: dict[str, list[int]] = {}
        for index in indices:
            wanted.setdefault(transfer.entry.chunks[index].digest, []).append(index)
        transfer.report.streams += 1
        call = self._stub.FetchChunks(artifacts_pb2.FetchChunksRequest(digests=list(wanted)))
        keeping: asyncio.Task[None] | None = None
        try:
            async for chunk in self._chunks(call):
                places = wanted.get(chunk.digest)
                if places is None:
                    raise IntegrityError(f"the service sent chunk {chunk.digest[:12]!r}, which was not asked for")
                if keeping is not None:
                    await keeping
                keeping = asyncio.create_task(transfer.keep(places, chunk))
        finally:
            call.cancel()
            if keeping is not None:
                await keeping

    async def _chunks(self, call: ChunkCall) -> AsyncIterator[artifacts_pb2.Chunk]:
        with translated_errors("the artifact cache"):
            while True:
                try:
                    async with asyncio.timeout(self._settings.chunk_timeout_s):
                        chunk = await call.read()
                except TimeoutError:
                    raise DeadlineError(f"no chunk arrived for {self._settings.chunk_timeout_s:g} s") from None
                if not isinstance(chunk, artifacts_pb2.Chunk):  # the marker for the end of the stream
                    return
                yield chunk


class _Transfer:
    """One file that is being fetched."""

    def __init__(self, entry: FileEntry, partial: PartialFile, report: FetchReport, progress: Progress | None) -> None:
        self.entry = entry
        self.report = report
        self._partial = partial
        self._progress = progress
        self._bad_copies: dict[int, int] = {}

    def missing(self) -> tuple[int, ...]:
        return self._partial.missing()

    async def keep(self, places: list[int], chunk: artifacts_pb2.Chunk) -> None:
        """Check the chunk and write it wherever the file has those bytes."""
        try:
            await asyncio.to_thread(self._write, places, chunk)
        except IntegrityError as exc:
            self._refuse(places[0], exc)
            return
        self.report.chunks_fetched += 1
        self.report.present_bytes += sum(self.entry.chunks[index].size_bytes for index in places)
        if self._progress is not None:
            self._progress(self.report)

    def _write(self, places: list[int], chunk: artifacts_pb2.Chunk) -> None:
        expected = self.entry.chunks[places[0]]  # bounds memory: the sender's word for the size counts for nothing
        try:
            data = unpack(chunk.codec, chunk.data, limit_bytes=expected.size_bytes)
        except IntegrityError as exc:
            raise IntegrityError(f"chunk {expected.digest[:12]} of file {self.entry.name}: {exc}") from exc
        for index in places:
            self._partial.write(index, data)

    def _refuse(self, index: int, reason: IntegrityError) -> None:
        copies = self._bad_copies[index] = self._bad_copies.get(index, 0) + 1
        self.report.chunks_corrupt += 1
        digest = self.entry.chunks[index].digest
        _log.warning("fetch.chunk_corrupt file=%s chunk=%s copies=%d", self.entry.name, digest, copies)
        if copies >= MAX_BAD_COPIES:
            raise IntegrityError(
                f"{reason}, {copies} times in a row; nothing of it was kept: check the service's store and the network"
            ) from reason
