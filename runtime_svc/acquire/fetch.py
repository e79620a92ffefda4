# SPDX-License-Identifier: Apache-2.0
"""Bringing an artifact's missing chunks here, each checked before it is kept.

Only what is missing is asked for, so a dropped stream, a killed process or a reboot costs what was in flight: the
chunk that comes and the one being written. A chunk is never larger in memory than the manifest says, compressed or not.
A fetch holds about three of them, some 4 MiB with gRPC's own buffers on a slow link, and at most FETCHES run at once.
Which source is asked is said by `sources`; where the bytes end up is the local cache's business; what they mean is
nobody's here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc.aio

from dovetail.artifact import FileEntry, Manifest
from dovetail.clock import Clock
from dovetail.errors import DovetailError, IntegrityError, NotFoundError, UnavailableError
from dovetail.rpc.chunk_reader import ReadSettings, read_chunks
from dovetail.rpc.rate_limit import RateLimit
from runtime_svc.acquire.backoff import Backoff
from runtime_svc.acquire.local_cache import LocalCache
from runtime_svc.acquire.needed import needed_files
from runtime_svc.acquire.sources import MAX_BAD_COPIES, Source, sources_of
from runtime_svc.acquire.transfer import FetchReport, Progress, Transfer

__all__ = ["MAX_BAD_COPIES", "ChunkFetcher", "FetchReport", "FetchSettings", "Progress"]

_log = logging.getLogger(__name__)

REQUEST_CHUNKS = 256
"""Chunks asked for in one stream: 255 MiB; the service takes up to 4096."""

FETCHES = 4
"""Artifacts fetched at once; the next waits, and what they all hold stays under 16 MiB."""


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """How patient a fetch is.

    Attributes:
        chunk_timeout_s: A stream that brings nothing for this long is dropped and asked for again.
        whole_chunk_timeout_s: So is one that does not bring a whole chunk in this time; pieces that came are kept.
        idle_attempts: Attempts in a row, for each source, that may bring nothing before the fetch ends as unavailable.
        bytes_per_s: Most that all fetches together take; 0: no limit.
    """

    chunk_timeout_s: float = 30.0
    whole_chunk_timeout_s: float = 600.0
    idle_attempts: int = 6
    bytes_per_s: int = 0


class ChunkFetcher:
    """Fetches artifacts; several fetches may run at once.

    Args:
        channel: To a service that has `dovetail.v1.ArtifactCache` and all chunks: the last that is asked.
        cache: Where files go.
        settings: How patient to be.
        backoff: Makes the pauses between attempts, one for each source.
        nearer: Names of and channels to services that may have chunks, in the order in which they are asked.
        clock: Monotonic time.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        cache: LocalCache,
        *,
        settings: FetchSettings | None = None,
        backoff: Callable[[], Backoff] = Backoff,
        nearer: Sequence[tuple[str, grpc.aio.Channel]] = (),
        clock: Clock | None = None,
    ) -> None:
        self._sources = sources_of(channel, nearer, backoff, clock)
        self._cache = cache
        self._settings = settings or FetchSettings()
        self._reading = ReadSettings(
            piece_timeout_s=self._settings.chunk_timeout_s,
            chunk_timeout_s=self._settings.whole_chunk_timeout_s,
            max_bytes_per_s=self._settings.bytes_per_s,
        )
        self._rate = RateLimit(self._settings.bytes_per_s)
        self._locks: dict[str, asyncio.Lock] = {}
        self._turns = asyncio.Semaphore(FETCHES)

    async def fetch(self, manifest: Manifest, progress: Progress | None = None) -> FetchReport:
        """Bring every needed file of an artifact here; room must have been reserved.

        Raises:
            NotFoundError: No source has a chunk.
            IntegrityError: Chunks came wrong until no source was left, or the manifest contradicts itself.
            OverLimitError: The disk is full.
            UnavailableError: No source answers; what came so far is kept.
        """
        files = needed_files(manifest)
        report = FetchReport(total_bytes=sum(entry.size_bytes for entry in files))
        async with self._turns:
            for entry in files:
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
            await self._fetch_missing(Transfer(entry, partial, report, progress))
            await asyncio.to_thread(partial.finish, self._cache.path(entry.digest))
        finally:
            await asyncio.to_thread(partial.close)

    async def _fetch_missing(self, transfer: Transfer) -> None:
        idle = 0
        last: DovetailError | None = None
        while missing := transfer.missing():
            source = self._choose(transfer, last)
            if source.pause_s:
                await source.backoff.rest(source.pause_s)
                source.wake()
            before = transfer.report.chunks_fetched
            last = await self._attempt(source, transfer)
            idle = 0 if transfer.report.chunks_fetched > before else idle + 1
            if last is not None and transfer.missing():
                _log.warning(
                    "fetch.interrupted file=%s missing=%d source=%s why=%r",
                    transfer.entry.name, len(missing), source.name, str(last),
                )  # fmt: skip
            if idle >= self._settings.idle_attempts * len(self._sources):
                raise UnavailableError(
                    f"file {transfer.entry.name} misses {len(missing)} of {len(transfer.entry.chunks)} chunks "
                    f"after {idle} attempts without progress; last: {last}"
                )

    def _choose(self, transfer: Transfer, last: DovetailError | None) -> Source:
        """The first source that may be asked now, else the one that may be soonest."""
        able = [source for source in self._sources if transfer.wanted(source, 1)]
        allowed = [source for source in able if not source.banned_s]
        if not allowed:
            if isinstance(last, IntegrityError):
                raise IntegrityError(
                    f"{last}; {MAX_BAD_COPIES} times in a row, so nothing more is taken from there for a while: "
                    "check the service's store and the network"
                ) from last
            names = ", ".join(source.name for source in able)
            raise UnavailableError(f"{names} brought wrong bytes and is not asked for {able[0].banned_s:.0f} s more")
        return min(allowed, key=lambda source: source.pause_s)  # of equals the first, and most are not paused

    async def _attempt(self, source: Source, transfer: Transfer) -> DovetailError | None:
        """One stream; returns why it ended early, None if it brought all that was asked for."""
        wanted = transfer.wanted(source, REQUEST_CHUNKS)
        try:
            error = await self._stream(source, transfer, wanted)
        except IntegrityError as exc:  # one wrong chunk too many
            return exc
        if isinstance(error, NotFoundError):
            digest = transfer.lacks(source, list(wanted))
            if transfer.lacked_by_all(digest, self._sources):
                raise error
        elif isinstance(error, IntegrityError):
            source.brought_wrong_bytes()
        elif error is not None:  # also what is no chunk service at all: the others may still have what is missing
            source.failed(error)
        return error

    async def _stream(self, source: Source, transfer: Transfer, wanted: dict[str, int]) -> DovetailError | None:
        """Take what comes; a chunk is checked and written in a thread while the next one arrives.

        Returns:
            What ended the stream early. What goes wrong on this machine's side is raised.
        """
        transfer.report.streams += 1
        chunks = read_chunks(
            source.stub,
            wanted,
            settings=self._reading,
            unfinished=transfer.unfinished(source),
            rate=self._rate,
            peer=source.name,
        )
        keeping: asyncio.Task[None] | None = None
        try:
            while True:
                try:
                    chunk = await anext(chunks, None)
                except DovetailError as exc:
                    return exc
                if chunk is None:
                    return None
                if keeping is not None:
                    await self._kept(keeping, source)
                keeping = asyncio.create_task(transfer.keep(chunk))
        finally:
            await chunks.aclose()
            if keeping is not None:
                await self._kept(keeping, source)

    async def _kept(self, keeping: asyncio.Task[None], source: Source) -> None:
        """Wait until a chunk is on disk; one that was wrong is asked for again later, unless it was one too many."""
        try:
            await keeping
        except IntegrityError:
            if source.brought_wrong_bytes():
                raise
        else:
            source.worked()
