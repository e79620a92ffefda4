# SPDX-License-Identifier: Apache-2.0
"""A durable tier in memory on a manual clock, in which every step may be the moment when somebody else's turn comes.

`Stage` runs actors one at a time and chooses after each step who goes on, by a seed; so an interleaving that breaks a
promise is found again by its seed. Chunks behave as in a directory: trashing is a look, a rename and another look.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from dovetail.clock import ManualClock
from dovetail.errors import DovetailError
from dovetail.store.base import StoredChunk

Actor = Coroutine[Any, Any, None]


class Stage:
    """Runs actors in turns."""

    def __init__(self, seed: int, check: Callable[[], None]) -> None:
        self.random = random.Random(seed)
        self._check = check
        self._waiting: dict[asyncio.Task[None], asyncio.Future[None]] = {}
        self._changed = asyncio.Event()
        self._on = False
        self._actors: list[asyncio.Task[None]] = []

    async def turn(self) -> None:
        """Wait until it is the caller's turn."""
        task = asyncio.current_task()
        if not self._on or task not in self._actors:
            return
        self._waiting[task] = asyncio.get_running_loop().create_future()
        self._changed.set()
        await self._waiting[task]

    async def run(self, actors: Iterable[Actor], *, crash: float, between: Callable[[], Awaitable[None]]) -> None:
        """Run the actors to their ends; each step may, with that chance, be an actor's last."""
        self._on = True
        self._actors = [
            asyncio.create_task(_forgiving(actor), name=f"actor-{index:02d}") for index, actor in enumerate(actors)
        ]
        for actor in self._actors:
            actor.add_done_callback(lambda _: self._changed.set())
        while live := [actor for actor in self._actors if not actor.done()]:
            if any(actor not in self._waiting for actor in live) and not await self._is_blocked():
                continue
            await between()
            self._check()
            chosen = self.random.choice(sorted(self._waiting, key=lambda task: task.get_name()))
            future = self._waiting.pop(chosen)
            if self.random.random() < crash:
                chosen.cancel()
            else:
                future.set_result(None)
        self._on = False
        self._check()
        for actor in self._actors:
            if not actor.cancelled():
                actor.result()

    async def _is_blocked(self) -> bool:
        """True if who is not waiting for a turn waits for a lock that one has who is."""
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), 0.04 if self._waiting else 30)
        except TimeoutError:
            if not self._waiting:
                raise
            return True
        return False


async def _forgiving(actor: Actor) -> None:
    with suppress(DovetailError):  # refused, not found, lost its lease: what counts is what the stores hold
        await actor


@dataclass
class _Kept:
    data: bytes
    touched_ms: int
    moved_ms: int = 0
    half_way: bool = False


class StagedChunks:
    """`CollectableChunkStore` in memory."""

    touch_resolution_ms = 0

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.stage: Stage | None = None
        self.place: dict[str, _Kept] = {}
        self.bin: dict[str, _Kept] = {}

    def holds(self, digest: str) -> bool:
        """True if whoever asks for the chunk has it."""
        return digest in self.place or digest in self.bin

    def in_place(self, digest: str) -> bool:
        """True if it is not in the trash, or only between the two looks of a trashing that may have been cut short."""
        kept = self.bin.get(digest)
        return digest in self.place or (kept is not None and kept.half_way)

    async def get(self, digest: str) -> bytes | None:
        await self._turn()
        kept = self.place.get(digest) or self.bin.get(digest)
        return kept.data if kept else None

    async def put(self, digest: str, data: bytes) -> None:
        await self._turn()
        self.place[digest] = _Kept(data, self.clock.wall_ms())

    async def missing(self, digests: Iterable[str]) -> set[str]:
        absent = set()
        for digest in digests:
            await self._turn()
            if digest not in self.place and not await self.restore(digest):
                absent.add(digest)
            elif digest in self.place:
                self.place[digest].touched_ms = self.clock.wall_ms()
        return absent

    async def delete(self, digest: str) -> None:
        self.place.pop(digest, None)
        self.bin.pop(digest, None)

    async def chunks(self) -> AsyncIterator[Sequence[StoredChunk]]:
        await self._turn()
        for digest, kept in list(self.place.items()):
            yield [StoredChunk(digest, len(kept.data), kept.touched_ms)]
            await self._turn()

    async def trashed(self) -> AsyncIterator[Sequence[StoredChunk]]:
        await self._turn()
        for digest, kept in list(self.bin.items()):
            yield [StoredChunk(digest, len(kept.data), kept.moved_ms)]
            await self._turn()

    async def stat(self, digest: str) -> StoredChunk | None:
        kept = self.place.get(digest)
        return StoredChunk(digest, len(kept.data), kept.touched_ms) if kept else None

    async def trash(self, digest: str, *, untouched_since_ms: int) -> bool:
        kept = self.place.get(digest)
        if kept is None or kept.touched_ms > untouched_since_ms:
            return kept is None and digest in self.bin
        await self._turn()
        if digest not in self.place:
            return False
        self.bin[digest] = self.place.pop(digest)
        self.bin[digest].moved_ms = self.clock.wall_ms()
        self.bin[digest].half_way = True
        await self._turn()
        moved = self.bin.get(digest)
        if moved is not None:
            moved.half_way = False
        if moved is not None and moved.touched_ms > untouched_since_ms:
            self.place[digest] = self.bin.pop(digest)
            return False
        return moved is not None

    async def restore(self, digest: str) -> bool:
        if digest not in self.bin:
            return False
        self.bin[digest].touched_ms = self.clock.wall_ms()
        await self._turn()
        if digest not in self.bin:
            return digest in self.place
        self.place[digest] = self.bin.pop(digest)
        return True

    async def purge(self, digest: str, *, trashed_until_ms: int) -> bool:
        await self._turn()
        kept = self.bin.get(digest)
        if kept is not None and kept.moved_ms <= trashed_until_ms:
            del self.bin[digest]
        return not self.holds(digest)

    async def now_ms(self) -> int:
        await self._turn()
        return self.clock.wall_ms()

    async def _turn(self) -> None:
        if self.stage is not None:
            await self.stage.turn()


class StagedDocuments:
    """`DocumentStore` in memory."""

    def __init__(self) -> None:
        self.stage: Stage | None = None
        self.kept: dict[str, bytes] = {}

    async def get(self, key: str) -> bytes | None:
        await self._turn()
        return self.kept.get(key)

    async def put(self, key: str, data: bytes) -> None:
        await self._turn()
        self.kept[key] = data

    async def delete(self, key: str) -> None:
        await self._turn()
        self.kept.pop(key, None)

    async def keys(self, prefix: str) -> list[str]:
        await self._turn()
        return sorted(key for key in self.kept if key.startswith(prefix))

    async def _turn(self) -> None:
        if self.stage is not None:
            await self.stage.turn()
