# SPDX-License-Identifier: Apache-2.0
"""A hit is complete or it is a miss: which manifests have all their chunks in the store right now.

Asking also protects the chunks from eviction, so it is done for whatever is about to be offered. A positive answer is
kept for a few seconds, because every watcher of a model asks the same question; a negative one is never kept.
"""

from __future__ import annotations

from collections.abc import Iterable

from dovetail.artifact import Manifest
from dovetail.clock import Clock
from dovetail.store.base import ChunkStore

KEEP_S = 5.0
"""Shorter than any eviction horizon (chunks live for days), longer than a burst of watchers."""

_MAX_KEPT = 4096


class Completeness:
    """Answers whether artifacts can be served whole; safe for concurrent calls of one event loop."""

    def __init__(self, store: ChunkStore, clock: Clock, *, keep_s: float = KEEP_S) -> None:
        self._store = store
        self._clock = clock
        self._keep_s = keep_s
        self._complete_until_s: dict[str, float] = {}

    async def complete(self, manifests: Iterable[Manifest]) -> set[str]:
        """Artifact keys of the manifests whose chunks are all present.

        Raises:
            UnavailableError: The store does not answer.
        """
        now_s = self._clock.monotonic_s()
        asked = list(manifests)
        known = {item.artifact_key for item in asked if self._complete_until_s.get(item.artifact_key, 0.0) > now_s}
        unknown = [item for item in asked if item.artifact_key not in known]
        if not unknown:
            return known
        absent = await self._store.missing(set().union(*(item.chunk_digests() for item in unknown)))
        whole = {item.artifact_key for item in unknown if not item.chunk_digests() & absent}
        if len(self._complete_until_s) > _MAX_KEPT:
            self._complete_until_s = {key: until for key, until in self._complete_until_s.items() if until > now_s}
        self._complete_until_s.update(dict.fromkeys(whole, now_s + self._keep_s))
        return known | whole
