# SPDX-License-Identifier: Apache-2.0
"""What is stored, by tier, kind, model and tenant: one reading of all documents and one listing of all chunks."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from compiler_svc.collection.hot_tier import HotFigures, hot_figures
from compiler_svc.collection.marks import Marks
from compiler_svc.collection.progress import OnProgress, Progress
from compiler_svc.collection.quota import Quotas, Usage
from compiler_svc.collection.roots import Root
from compiler_svc.collection.survey import Survey
from compiler_svc.collection.sweep import Tally
from dovetail.store.base import CollectableChunkStore, DocumentStore, StoredChunk
from dovetail.store.redis_connection import RedisConnection


@dataclass(slots=True)
class ModelFigures:
    """One model, all its versions and artifacts together; sizes are plain."""

    tenant: str = ""
    newest: int = 0
    versions: int = 0
    artifacts: int = 0
    model_bytes: int = 0
    artifact_bytes: int = 0

    def add(self, root: Root) -> None:
        """Count a version or an artifact."""
        if root.artifact_key:
            self.artifacts += 1
            self.artifact_bytes += root.size_bytes
            return
        self.versions += 1
        self.model_bytes += root.size_bytes
        if root.version >= self.newest:
            self.newest, self.tenant = root.version, root.tenant


@dataclass(slots=True)
class Figures:
    """All of it; see `StoreStats` in store.proto, whose words these are."""

    hot: HotFigures
    durable: Tally = field(default_factory=Tally)
    trash: Tally = field(default_factory=Tally)
    referenced: Tally = field(default_factory=Tally)
    retired: Tally = field(default_factory=Tally)
    unreferenced: Tally = field(default_factory=Tally)
    missing_chunks: int = 0
    logical_bytes: int = 0
    distinct_bytes: int = 0
    stored_bytes: int = 0
    documents: dict[str, int] = field(default_factory=dict)
    models: dict[str, ModelFigures] = field(default_factory=dict)
    tenants: Sequence[Usage] = ()
    unreadable: Sequence[str] = ()


class Bookkeeper:
    """Takes the figures; safe for concurrent calls of one event loop."""

    def __init__(
        self, documents: DocumentStore, store: CollectableChunkStore, quotas: Quotas, hot: RedisConnection
    ) -> None:
        self._documents = documents
        self._store = store
        self._quotas = quotas
        self._hot = hot

    async def figures(self, on_progress: OnProgress) -> Figures:
        """Read and list everything. Raises UnavailableError."""
        found = Figures(hot=await hot_figures(self._hot), tenants=await self._quotas.usage())
        kinds = Counter(key.partition("/")[0] for key in await self._documents.keys(""))
        found.documents = dict(sorted(kinds.items()))
        marks = await self._read_roots(found, on_progress)
        await self._list_chunks(found, marks, on_progress)
        return found

    async def _read_roots(self, found: Figures, on_progress: OnProgress) -> Marks:
        marks = Marks()
        survey = Survey(self._documents, lambda done, total: on_progress(Progress("documents", done, total)))
        async for root in survey.roots():
            marks.add(root)
            if root.kind in ("models", "manifests"):
                found.models.setdefault(root.model, ModelFigures()).add(root)
        found.unreadable = tuple(survey.unreadable)
        found.logical_bytes = marks.logical_bytes
        found.distinct_bytes = sum(marks.live.values())
        return marks

    async def _list_chunks(self, found: Figures, marks: Marks, on_progress: OnProgress) -> None:
        needed = {*marks.live, *marks.retired}
        async for chunk in _each(self._store.chunks(), "chunks", on_progress):
            found.durable.add(chunk)
            if chunk.digest not in marks:
                found.unreferenced.add(chunk)
                continue
            needed.discard(bytes.fromhex(chunk.digest))
            found.referenced.add(chunk)
            if marks.only_retired(chunk.digest):
                found.retired.add(chunk)
            else:
                found.stored_bytes += chunk.size_bytes
        async for chunk in _each(self._store.trashed(), "trash", on_progress):
            found.trash.add(chunk)
            needed.discard(bytes.fromhex(chunk.digest))  # who asks for it has it
        found.missing_chunks = len(needed)


async def _each(
    pages: AsyncIterator[Sequence[StoredChunk]], phase: str, on_progress: OnProgress
) -> AsyncIterator[StoredChunk]:
    seen = 0
    async for page in pages:
        for chunk in page:
            yield chunk
        seen += len(page)
        on_progress(Progress(phase, seen))
