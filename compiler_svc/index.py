# SPDX-License-Identifier: Apache-2.0
"""The index: what exists. Models, manifests, benchmark figures and nodes; content is in the chunk store.

Implemented on Redis by `redis_index`; every durable record is also written to the document store of the durable tier
(before Redis), so that an empty Redis is rebuilt from it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Protocol

from compiler_svc.index_rebuild import Rebuilt
from dovetail.artifact import Manifest
from dovetail.benchmark import BenchmarkRecord
from dovetail.pb.v1.fleet_pb2 import Node
from dovetail.pb.v1.storage_pb2 import ModelRecord


class Index(Protocol):
    """All methods are safe to call concurrently; UnavailableError if Redis does not answer."""

    async def add_model(self, record: ModelRecord) -> tuple[ModelRecord, bool]:
        """Register a version and fill in its number; content equal to the newest version's returns that and False."""
        ...

    async def model(self, name: str, version: int = 0, alias: str = "") -> ModelRecord:
        """One version (0: newest), with `model.aliases` filled in. NotFoundError names what exists."""
        ...

    async def models(self, name: str = "") -> Sequence[ModelRecord]:
        """All versions, by name and number."""
        ...

    async def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias at a version. NotFoundError."""
        ...

    async def delete_model(self, name: str, version: int = 0) -> int:
        """Remove a version or all, with their manifests; returns how many versions. NotFoundError."""
        ...

    async def manifests(self, model: str = "", version: int = 0) -> Sequence[tuple[Manifest, bytes]]:
        """Published manifests with their stored bytes; immutable, so implementations may cache by digest."""
        ...

    async def manifest(self, artifact_key: str) -> bytes:
        """Stored bytes of one manifest. NotFoundError."""
        ...

    async def envelope(self, artifact_key: str) -> bytes:
        """DSSE envelope of that manifest as its worker signed it; b"" if nobody signed it."""
        ...

    async def add_benchmark(self, artifact_key: str, record: BenchmarkRecord) -> None:
        """Keep figures (the newest per hardware class, scenario, batch, threads and streams). NotFoundError."""
        ...

    async def benchmarks_of(self, artifact_keys: Iterable[str]) -> Mapping[str, Sequence[BenchmarkRecord]]:
        """Figures from the manifests and from nodes, in one round trip; a key without a manifest is left out."""
        ...

    async def report_node(self, node: Node) -> None:
        """Record a node's state with the server's clock."""
        ...

    async def nodes(self) -> Sequence[Node]:
        """Nodes by id."""
        ...

    async def rebuild(self) -> int:
        """Fill an empty index from the durable tier; returns how many records, 0 if the index is not empty."""
        ...

    async def repair(self, on_progress: Callable[[int], None] | None = None) -> tuple[Rebuilt, Sequence[str]]:
        """Read the durable tier again, also if the index is not empty, and put in what it lacks.

        Returns:
            What was found, and keys of the documents that the index has records for and the durable tier lacks.
        """
        ...

    async def retire_artifact(self, artifact_key: str) -> None:
        """Remove the documents of an artifact that the index has no more.

        Its manifest still counts for a while, since nodes may be fetching what it names.
        """
        ...

    def changes(self) -> AsyncIterator[str]:
        """Name of a model each time its manifests or their figures change; for WatchOffers.

        Starts a few seconds in the past, so a caller that looks once after it began misses nothing; names may repeat.
        """
        ...
