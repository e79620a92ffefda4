# SPDX-License-Identifier: Apache-2.0
"""The sweeping half of collection: what nobody needs goes to the trash, what was there for a grace goes for good.

Which step a chunk takes is a pure decision here; that a decision from before never takes away what was asked for since
is the store's promise, which looks again in each step. So a sweep may be cut short anywhere and repeated by anyone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum

from compiler_svc.collection.marks import Marks
from dovetail.store.base import CollectableChunkStore, StoredChunk

OnPage = Callable[[str, int], Awaitable[None]]
"""Called after each page with the phase and the chunks looked at in it; may raise to end the sweep."""


class Step(Enum):
    """What happens to a chunk."""

    KEEP = "keep"
    TRASH = "trash"
    RESTORE = "restore"
    WAIT = "wait"
    PURGE = "purge"


@dataclass(frozen=True, slots=True)
class Limits:
    """Times by the durable tier's clock.

    Attributes:
        touched_until_ms: A chunk that was touched later stays.
        trashed_until_ms: A chunk that came into the trash later stays there.
    """

    touched_until_ms: int
    trashed_until_ms: int

    @staticmethod
    def of(*, began_ms: int, grace_ms: int, resolution_ms: int, pinned_since_ms: int) -> Limits:
        """The limits of a collection.

        Args:
            began_ms: When it began, before it read the first root: what was named later was touched within the grace.
            grace_ms: The grace.
            resolution_ms: The store's `touch_resolution_ms`.
            pinned_since_ms: Begin of the oldest pin; -1: none.
        """
        touched_ms = began_ms - grace_ms
        if pinned_since_ms >= 0:
            touched_ms = min(touched_ms, pinned_since_ms)
        return Limits(touched_ms - resolution_ms - 1, began_ms - grace_ms)


@dataclass(slots=True)
class Tally:
    """Chunks and their size as stored."""

    chunks: int = 0
    bytes: int = 0

    def add(self, chunk: StoredChunk) -> None:
        """Count a chunk."""
        self.chunks += 1
        self.bytes += chunk.size_bytes


@dataclass(slots=True)
class Swept:
    """What a sweep did, or would do."""

    trashed: Tally = field(default_factory=Tally)
    purged: Tally = field(default_factory=Tally)
    restored: Tally = field(default_factory=Tally)
    kept_young: Tally = field(default_factory=Tally)
    waiting: Tally = field(default_factory=Tally)


def step_in_place(chunk: StoredChunk, *, needed: bool, limits: Limits) -> Step:
    """What happens to a chunk that is in its place."""
    return Step.TRASH if not needed and chunk.touched_ms <= limits.touched_until_ms else Step.KEEP


def step_in_trash(chunk: StoredChunk, *, needed: bool, limits: Limits) -> Step:
    """What happens to a chunk that is in the trash."""
    if needed:
        return Step.RESTORE
    return Step.PURGE if chunk.touched_ms <= limits.trashed_until_ms else Step.WAIT


class Sweep:
    """One sweep over a store; used once."""

    def __init__(
        self, store: CollectableChunkStore, marks: Marks, limits: Limits, *, dry_run: bool, on_page: OnPage
    ) -> None:
        self._store = store
        self._marks = marks
        self._limits = limits
        self._dry_run = dry_run
        self._on_page = on_page
        self.swept = Swept()

    async def run(self) -> Swept:
        """Sweep; the trash first, so that nothing goes both steps in one sweep.

        Raises:
            UnavailableError: The store does not answer; what was done until then is done.
        """
        for phase, pages, handle in (
            ("trash", self._store.trashed(), self._in_trash),
            ("chunks", self._store.chunks(), self._in_place),
        ):
            seen = 0
            async for page in pages:
                for chunk in page:
                    await handle(chunk)
                seen += len(page)
                await self._on_page(phase, seen)
        return self.swept

    async def _in_trash(self, chunk: StoredChunk) -> None:
        step = step_in_trash(chunk, needed=chunk.digest in self._marks, limits=self._limits)
        if step is Step.RESTORE:
            if self._dry_run or await self._store.restore(chunk.digest):
                self.swept.restored.add(chunk)
        elif step is Step.PURGE:
            until_ms = self._limits.trashed_until_ms
            if self._dry_run or await self._store.purge(chunk.digest, trashed_until_ms=until_ms):
                self.swept.purged.add(chunk)
        else:
            self.swept.waiting.add(chunk)

    async def _in_place(self, chunk: StoredChunk) -> None:
        needed = chunk.digest in self._marks
        if step_in_place(chunk, needed=needed, limits=self._limits) is Step.TRASH:
            since_ms = self._limits.touched_until_ms
            if self._dry_run or await self._store.trash(chunk.digest, untouched_since_ms=since_ms):
                self.swept.trashed.add(chunk)
                return
        if not needed:
            self.swept.kept_young.add(chunk)
