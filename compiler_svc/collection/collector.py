# SPDX-License-Identifier: Apache-2.0
"""One collection from beginning to end, on demand or by itself now and then.

The order is what makes it safe: the right and the pins, then the time, then the roots, then the sweep. What was touched
before that time minus the grace and is named by no root cannot be named by anyone later, because who names a chunk has
asked for it or stored it within the grace, or has pinned it. See `survey`, `marks` and `sweep` for the parts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field, replace

from compiler_svc.collection.marks import Marks, counts_still, ownerless
from compiler_svc.collection.progress import OnProgress, Progress
from compiler_svc.collection.right import CollectionRight, Ground
from compiler_svc.collection.roots import Root
from compiler_svc.collection.survey import Survey
from compiler_svc.collection.sweep import Limits, Sweep, Swept
from compiler_svc.index import Index
from compiler_svc.keys import model_document
from dovetail.errors import DovetailError, PreconditionError
from dovetail.store.base import CollectableChunkStore, DocumentStore

LOOK_S = 60.0
"""How often a service looks whether a collection is due, at the most."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Collected:
    """What a collection did, or would do.

    Attributes:
        dry_run: True if nothing was changed.
        swept: Chunks.
        retired_dropped: Retired artifacts that stopped to count.
        retired_kept: Retired artifacts that still count.
        took_s: Time that it took.
    """

    dry_run: bool
    swept: Swept = field(default_factory=Swept)
    retired_dropped: int = 0
    retired_kept: int = 0
    took_s: float = 0.0


@dataclass(slots=True)
class _Marked:
    """What the roots came to."""

    marks: Marks = field(default_factory=Marks)
    over: list[str] = field(default_factory=list)
    retired_kept: int = 0
    manifests: list[Root] = field(default_factory=list)
    versions: set[tuple[str, int]] = field(default_factory=set)


class Collector:
    """Collects garbage of one durable tier; safe for concurrent calls, of which one collects."""

    def __init__(
        self,
        index: Index,
        documents: DocumentStore,
        store: CollectableChunkStore,
        right: CollectionRight,
        *,
        grace_s: float,
    ) -> None:
        self._index = index
        self._documents = documents
        self._store = store
        self._right = right
        self.grace_s = grace_s
        self._grace_ms = round(grace_s * 1000)

    async def collect(self, *, dry_run: bool = False, on_progress: OnProgress | None = None) -> Collected:
        """Collect once; see `Store.Collect` in store.proto.

        Raises:
            PreconditionError: Another collection runs, the index is too young, or a document cannot be read.
            UnavailableError: Redis or the durable tier does not answer.
        """
        if dry_run:
            return await self._collect(await self._right.look(), True, on_progress or _unheard)
        async with self._right.held() as ground:
            self._refuse_young_index(ground)
            done = await self._collect(ground, False, on_progress or _unheard)
        _log.info(
            "collection.done trashed=%d purged=%d purged_bytes=%d restored=%d young=%d waiting=%d took_s=%.1f",
            done.swept.trashed.chunks, done.swept.purged.chunks, done.swept.purged.bytes, done.swept.restored.chunks,
            done.swept.kept_young.chunks, done.swept.waiting.chunks, done.took_s,
        )  # fmt: skip
        return done

    async def run(self, period_s: float) -> None:
        """Collect by itself until cancelled; of all services one does it, `period_s` after the last ended.

        Returns at once if the period is 0.
        """
        while period_s > 0:
            await asyncio.sleep(min(period_s, LOOK_S))
            try:
                if await self._right.due(period_s):
                    await self.collect()
            except PreconditionError as exc:  # another was faster, or it is too early
                _log.info("collection.put_off why=%r", str(exc))
            except DovetailError as exc:
                _log.warning("collection.failed why=%r", str(exc))

    async def _collect(self, ground: Ground, dry_run: bool, on_progress: OnProgress) -> Collected:
        began_s = time.monotonic()
        began_ms = await self._store.now_ms()
        limits = Limits.of(
            began_ms=began_ms,
            grace_ms=self._grace_ms,
            resolution_ms=self._store.touch_resolution_ms,
            pinned_since_ms=ground.pinned_since_ms,
        )
        marked = await self._mark(ground.now_ms, on_progress)
        if not dry_run:
            await self._drop_retired(marked.over)
            await self._retire_ownerless(marked)

        async def on_page(phase: str, seen: int) -> None:
            on_progress(Progress(phase, seen))
            if not dry_run:
                await self._right.keep()

        sweep = Sweep(self._store, marked.marks, limits, dry_run=dry_run, on_page=on_page)
        swept = await sweep.run()
        took_s = time.monotonic() - began_s
        return Collected(dry_run, swept, len(marked.over), marked.retired_kept, took_s)

    async def _mark(self, now_ms: int, on_progress: OnProgress) -> _Marked:
        served = await self._served(now_ms)
        survey = Survey(self._documents, lambda done, total: on_progress(Progress("documents", done, total)))
        marked = _Marked()
        async for root in survey.roots():
            if not counts_still(root, now_ms=now_ms, grace_ms=self._grace_ms, served=served):
                marked.over.append(root.document)
                continue
            marked.marks.add(root)
            if root.retired_at_ms is not None:
                marked.retired_kept += 1
            elif root.kind == "manifests":
                marked.manifests.append(replace(root, chunks=()))
            elif root.kind == "models":
                marked.versions.add((root.model, root.version))
        if survey.unreadable:
            why = next(iter(survey.unreadable.values()))
            raise PreconditionError(
                f"nothing is collected while it is not known what {len(survey.unreadable)} documents need: {why}; "
                "`dovetail store verify` puts them right or moves them aside"
            )
        return marked

    async def _served(self, now_ms: int) -> set[str]:
        """Artifacts that nodes serve which reported within the grace."""
        nodes = await self._index.nodes()
        return {
            serving.artifact_key
            for node in nodes
            if now_ms - node.last_seen_ms <= self._grace_ms
            for serving in node.serving
        }

    async def _drop_retired(self, documents: list[str]) -> None:
        for document in documents:
            await self._documents.delete(document)

    async def _retire_ownerless(self, marked: _Marked) -> None:
        """What a deletion that was cut short left behind; it still counts in this collection."""
        links = await self._documents.keys("links/")
        for root in ownerless(marked.manifests, links, marked.versions):
            if await self._documents.get(model_document(root.model, root.version)) is not None:
                continue  # pushed again, or restored from a backup, just now
            if await self._index.benchmarks_of([root.artifact_key]):
                continue  # the index has it
            await self._index.retire_artifact(root.artifact_key)
            _log.warning("collection.ownerless_retired key=%s model=%s", root.artifact_key, root.model)

    def _refuse_young_index(self, ground: Ground) -> None:
        if ground.index_age_ms < self._grace_ms:
            age = "is empty" if ground.index_age_ms < 0 else f"was filled {ground.index_age_ms / 1000:.0f} s ago"
            raise PreconditionError(
                f"the index {age}, and nothing is collected before it is {self.grace_s:g} s old (the grace): nodes "
                "and uploads must first have said what they need; try again later"
            )


def _unheard(progress: Progress) -> None:
    _log.debug("collection.progress phase=%s done=%d total=%d", progress.phase, progress.done, progress.total)
