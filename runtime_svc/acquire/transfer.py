# SPDX-License-Identifier: Apache-2.0
"""One file that is being fetched: what is still wanted of it and from whom, and how a chunk that came is kept."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dovetail.artifact import FileEntry
from dovetail.errors import IntegrityError
from dovetail.rpc.chunk_reader import ReceivedChunk, Unfinished
from dovetail.store.codec import unpack
from runtime_svc.acquire.partial import PartialFile
from runtime_svc.acquire.sources import Source

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class FetchReport:
    """What a fetch did; grows while it runs.

    Attributes:
        total_bytes: Size of all files of the artifact that this machine needs.
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


class Transfer:
    """One file on its way. Belongs to the event loop.

    Args:
        entry: The file.
        partial: Where its chunks go.
        report: Grows with each chunk.
        progress: Told about each chunk that was kept.

    Attributes:
        entry: As above.
        report: As above.
    """

    def __init__(self, entry: FileEntry, partial: PartialFile, report: FetchReport, progress: Progress | None) -> None:
        self.entry = entry
        self.report = report
        self._partial = partial
        self._progress = progress
        self._places: dict[str, list[int]] = {}
        for index, chunk in enumerate(entry.chunks):
            self._places.setdefault(chunk.digest, []).append(index)
        self._lacked: dict[Source, set[str]] = {}
        self._unfinished: tuple[Source | None, Unfinished] = (None, Unfinished())

    def missing(self) -> tuple[int, ...]:
        """Indices of the chunks that are not here yet."""
        return self._partial.missing()

    def wanted(self, source: Source, most: int) -> dict[str, int]:
        """Digest -> size of the next missing chunks that the source is not known to lack, each once."""
        lacked = self._lacked.get(source, set())
        wanted: dict[str, int] = {}
        for index in self.missing():
            chunk = self.entry.chunks[index]
            if chunk.digest not in lacked:
                wanted[chunk.digest] = chunk.size_bytes
                if len(wanted) == most:
                    break
        return wanted

    def lacks(self, source: Source, digests: Sequence[str]) -> str:
        """Note that a source lacks a chunk: the first of those asked for that is not here. Returns its digest."""
        missing = {self.entry.chunks[index].digest for index in self.missing()}
        digest = next((digest for digest in digests if digest in missing), "")
        self._lacked.setdefault(source, set()).add(digest)
        return digest

    def lacked_by_all(self, digest: str, sources: Sequence[Source]) -> bool:
        """True if each of the sources is known to lack that chunk."""
        return all(digest in self._lacked.get(source, ()) for source in sources)

    def unfinished(self, source: Source) -> Unfinished:
        """What there is of a chunk whose stream broke; the pieces of one source are never joined with another's."""
        if self._unfinished[0] is not source:
            self._unfinished = (source, Unfinished())
        return self._unfinished[1]

    async def keep(self, chunk: ReceivedChunk) -> None:
        """Check the chunk and write it wherever the file has those bytes.

        Raises:
            IntegrityError: Its bytes are wrong; nothing is kept.
            OverLimitError: The disk is full.
        """
        places = self._places[chunk.digest]
        try:
            await asyncio.to_thread(self._write, places, chunk)
        except IntegrityError:
            self.report.chunks_corrupt += 1
            _log.warning("fetch.chunk_corrupt file=%s chunk=%s", self.entry.name, chunk.digest)
            raise
        self.report.chunks_fetched += 1
        self.report.present_bytes += sum(self.entry.chunks[index].size_bytes for index in places)
        if self._progress is not None:
            self._progress(self.report)

    def _write(self, places: list[int], chunk: ReceivedChunk) -> None:
        expected = self.entry.chunks[places[0]]  # bounds memory: the sender's word for the size counts for nothing
        try:
            data = unpack(chunk.codec, chunk.data, limit_bytes=expected.size_bytes)
        except IntegrityError as exc:
            raise IntegrityError(f"chunk {expected.digest[:12]} of file {self.entry.name}: {exc}") from exc
        for index in places:
            self._partial.write(index, data)
