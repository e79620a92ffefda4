# SPDX-License-Identifier: Apache-2.0
"""Hands out what was published: manifests as stored, chunks by digest. Nodes never reach the stores themselves.

How chunks are sent, and in how much memory, is `dovetail.rpc.chunk_sender`'s business.
"""

from __future__ import annotations

from collections.abc import Iterable

from compiler_svc.completeness import Completeness
from compiler_svc.index import Index
from dovetail.artifact import Manifest
from dovetail.benchmark import BenchmarkRecord
from dovetail.digest import check_digest, check_name, sha256_hex
from dovetail.errors import NotFoundError
from dovetail.pb.v1 import artifacts_pb2 as pb
from dovetail.rpc.chunk_sender import ChunkSender
from dovetail.wire import benchmark_bytes, read_benchmark


class Distribution:
    """Manifests and chunks; safe for concurrent calls of one event loop.

    Attributes:
        chunks: Serves FetchChunks.
    """

    def __init__(self, index: Index, chunks: ChunkSender, *, completeness: Completeness) -> None:
        self.chunks = chunks
        self._index = index
        self._completeness = completeness

    async def manifest(self, artifact_key: str, known_digest: str = "") -> pb.ManifestReply:
        """A manifest as stored; without its bytes if the caller knows them by their digest.

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
        figures = (await self._index.benchmarks_of([artifact_key])).get(artifact_key, ())
        reply = _reply(data, figures, await self._index.envelope(artifact_key))
        if known_digest == reply.digest:
            reply.ClearField("manifest_json")
        return reply

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

    async def report_benchmark(self, artifact_key: str, record_json: bytes) -> None:
        """Keep a node's figures. Raises InvalidInputError, NotFoundError, UnavailableError."""
        check_digest(artifact_key, "artifact key")
        record = read_benchmark(record_json)
        check_name(record.hardware_class, "hardware class")
        check_name(record.reported_by, "reporting node")
        await self._index.add_benchmark(artifact_key, record)


def _reply(manifest: bytes, figures: Iterable[BenchmarkRecord], envelope: bytes = b"") -> pb.ManifestReply:
    return pb.ManifestReply(
        manifest_json=manifest,
        digest=sha256_hex(manifest),
        benchmarks_json=[benchmark_bytes(record) for record in figures],
        envelope_json=envelope,
    )
