# SPDX-License-Identifier: Apache-2.0
"""Hands out what was published: manifests as stored, chunks by digest. Nodes never reach the stores themselves."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence

from compiler_svc.completeness import Completeness
from compiler_svc.index import Index
from dovetail.artifact import Manifest
from dovetail.benchmark import BenchmarkRecord
from dovetail.digest import check_digest, check_name, sha256_hex
from dovetail.errors import InvalidInputError, NotFoundError
from dovetail.pb.v1 import artifacts_pb2 as pb
from dovetail.store.base import ChunkStore
from dovetail.wire import benchmark_bytes, read_benchmark

MAX_DIGESTS = 4096
"""Digests in one FetchChunks: 4 GiB of content, 260 KiB of request."""

READ_AHEAD = 4
"""Chunks read while one is being sent: hides the store's latency, holds 4 MiB for each slow reader."""


class Distribution:
    """Manifests and chunks; safe for concurrent calls of one event loop."""

    def __init__(self, index: Index, store: ChunkStore, *, completeness: Completeness) -> None:
        self._index = index
        self._store = store
        self._completeness = completeness

    async def manifest(self, artifact_key: str) -> pb.ManifestReply:
        """A manifest as stored.

        Raises:
            InvalidInputError: Not an artifact key.
            NotFoundError: No such artifact, or some of its chunks are gone.
            UnavailableError: The index or store does not answer.
        """
        data = await self._index.manifest(check_digest(artifact_key, "artifact key"))
        manifest = Manifest.from_bytes(data)
        if not await self._completeness.complete([manifest]):
            raise NotFoundError(
                f"artifact {artifact_key[:12]} of {manifest.model} is not complete: some of its chunks are gone; "
                f'build it again with "dovetail compile {manifest.model}"'
            )
        return _reply(data, (await self._index.benchmarks_of([artifact_key])).get(artifact_key, ()))

    async def manifests(self, model: str, version: int) -> list[pb.ManifestReply]:
        """All complete manifests, or those of one model. Raises InvalidInputError, UnavailableError."""
        if model:
            check_name(model, "model name")
        pairs = await self._index.manifests(model, version)
        complete = await self._completeness.complete(manifest for manifest, _ in pairs)
        figures = await self._index.benchmarks_of(complete)
        return [
            _reply(data, figures.get(manifest.artifact_key, ()))
            for manifest, data in pairs
            if manifest.artifact_key in complete
        ]

    async def chunks(self, digests: Sequence[str]) -> AsyncIterator[pb.Chunk]:
        """The chunks in the order asked for, read a few ahead of the reader.

        Raises:
            InvalidInputError: Too many, or not digests.
            NotFoundError: No tier has the chunk; those before it were sent.
            UnavailableError: The store does not answer.
        """
        if len(digests) > MAX_DIGESTS:
            raise InvalidInputError(f"{len(digests)} chunks asked for at once, at most {MAX_DIGESTS} are sent")
        for digest in digests:
            check_digest(digest, "chunk digest")
        reading: deque[tuple[str, asyncio.Task[bytes | None]]] = deque()
        upcoming = iter(digests)
        try:
            while True:
                while len(reading) < READ_AHEAD and (digest := next(upcoming, "")):
                    reading.append((digest, asyncio.create_task(self._read(digest))))
                if not reading:
                    return
                digest, task = reading.popleft()
                yield _chunk(digest, await task)
        finally:
            for _, task in reading:
                task.cancel()
            await asyncio.gather(*(task for _, task in reading), return_exceptions=True)

    async def report_benchmark(self, artifact_key: str, record_json: bytes) -> None:
        """Keep a node's figures. Raises InvalidInputError, NotFoundError, UnavailableError."""
        check_digest(artifact_key, "artifact key")
        record = read_benchmark(record_json)
        check_name(record.hardware_class, "hardware class")
        check_name(record.reported_by, "reporting node")
        await self._index.add_benchmark(artifact_key, record)

    async def _read(self, digest: str) -> bytes | None:
        return await self._store.get(digest)


def _reply(manifest: bytes, figures: Iterable[BenchmarkRecord]) -> pb.ManifestReply:
    return pb.ManifestReply(
        manifest_json=manifest,
        digest=sha256_hex(manifest),
        benchmarks_json=[benchmark_bytes(record) for record in figures],
    )


def _chunk(digest: str, data: bytes | None) -> pb.Chunk:
    if data is None:
        raise NotFoundError(f"chunk {digest} is gone from every tier; fetch the manifest again, or build it again")
    return pb.Chunk(digest=digest, codec=pb.CHUNK_CODEC_PLAIN, data=data, size_bytes=len(data))
