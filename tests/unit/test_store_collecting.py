# SPDX-License-Identifier: Apache-2.0
"""A collector that decided before somebody asked for a chunk never takes it away, whatever the order of their steps."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from dovetail.digest import sha256_hex
from dovetail.errors import UnavailableError
from dovetail.store.atomic import AtomicFiles
from dovetail.store.disk import DiskChunkStore
from dovetail.store.object_bucket import ObjectBucket, ObjectEntry
from dovetail.store.object_chunks import PURGE_LIMIT_S, ObjectChunkStore

DATA = b"dovetail " * 100
DIGEST = sha256_hex(DATA)
CHUNK, TRASH = f"cas/{DIGEST[:2]}/{DIGEST}", f"trash/{DIGEST[:2]}/{DIGEST}"
FAR_MS = 1 << 50  # later than anything
LONG_AGO_NS = 10**18


class TurnBucket:
    """Objects in memory with a clock of whole seconds; each request waits until the test gives it its turn."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.clock_ms = 1_000_000
        self.waiting: list[asyncio.Event] = []

    async def get(self, name: str, *, limit_bytes: int) -> bytes | None:
        await self._turn()
        return self.objects[name][0] if name in self.objects else None

    async def put(self, name: str, data: bytes) -> None:
        await self._turn()
        self.objects[name] = data, self.clock_ms // 1000 * 1000

    async def create(self, name: str, data: bytes) -> bool:
        await self._turn()
        if name in self.objects:
            return False
        self.objects[name] = data, self.clock_ms // 1000 * 1000
        return True

    async def head(self, name: str) -> ObjectEntry | None:
        await self._turn()
        found = self.objects.get(name)
        return None if found is None else ObjectEntry(name, len(found[0]), found[1])

    async def delete(self, *names: str) -> None:
        for name in names:  # the service promises no order and no atomicity
            await self._turn()
            self.objects.pop(name, None)

    async def _turn(self) -> None:
        turn = asyncio.Event()
        self.waiting.append(turn)
        await turn.wait()


async def run_in_some_order(bucket: TurnBucket, seed: int, *jobs: Awaitable[Any]) -> list[Any]:
    """Serve one request after the other in an order that the seed decides, with some time between some of them."""
    chance = random.Random(seed)
    tasks = [asyncio.ensure_future(job) for job in jobs]
    while not all(task.done() for task in tasks):
        for _ in range(8):  # let everybody come to its next request
            await asyncio.sleep(0)
        if bucket.waiting:
            bucket.clock_ms += chance.choice((0, 0, 300, 1500))
            bucket.waiting.pop(chance.randrange(len(bucket.waiting))).set()
    return [task.result() for task in tasks]


def object_store(bucket: TurnBucket) -> ObjectChunkStore:
    return ObjectChunkStore(cast(ObjectBucket, bucket), touch_after_s=0, known_for_s=0)


async def upload(store: Any) -> None:
    if await store.missing([DIGEST]):
        await store.put(DIGEST, DATA)


@pytest.mark.parametrize("already_in_trash", [False, True])
async def test_object_store_keeps_what_an_uploader_was_promised(
    already_in_trash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dovetail.store.object_chunks._POLL_S", 0.0)
    restored = purged = 0
    for seed in range(100):
        bucket = TurnBucket()
        await run_in_some_order(bucket, seed, object_store(bucket).put(DIGEST, DATA))
        bucket.clock_ms += 10_000
        if already_in_trash:
            bucket.objects[TRASH] = b"", bucket.clock_ms // 1000 * 1000
            bucket.clock_ms += 10_000
        decided_ms = bucket.clock_ms - 5_000
        collector = object_store(bucket)

        async def collect(store: ObjectChunkStore = collector, since_ms: int = decided_ms) -> bool:
            await store.trash(DIGEST, untouched_since_ms=since_ms)
            return await store.purge(DIGEST, trashed_until_ms=FAR_MS)

        gone, _ = await run_in_some_order(bucket, seed, collect(), upload(object_store(bucket)))

        purged += gone
        restored += not gone
        assert bucket.objects.get(CHUNK) is not None, f"seed {seed}"
        assert not any(name.startswith("purging/") for name in bucket.objects), f"seed {seed}"
    assert purged
    assert restored


async def test_object_store_lets_two_collectors_and_two_uploaders_at_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dovetail.store.object_chunks._POLL_S", 0.0)
    for seed in range(60):
        bucket = TurnBucket()
        await run_in_some_order(bucket, seed, object_store(bucket).put(DIGEST, DATA))
        bucket.clock_ms += 10_000
        bucket.objects[TRASH] = b"", bucket.clock_ms // 1000 * 1000
        bucket.clock_ms += 10_000

        jobs: list[Awaitable[Any]] = [object_store(bucket).purge(DIGEST, trashed_until_ms=FAR_MS) for _ in range(2)]
        jobs += [upload(object_store(bucket)) for _ in range(2)]
        await run_in_some_order(bucket, seed, *jobs)

        assert CHUNK in bucket.objects, f"seed {seed}"


async def test_what_a_dead_collector_left_holds_an_uploader_up_only_until_it_is_stale(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dovetail.store.object_chunks._POLL_S", 0.0)
    monkeypatch.setattr("dovetail.store.object_chunks._WAIT_S", 0.0)
    bucket = TurnBucket()
    bucket.objects[f"purging/{DIGEST[:2]}/{DIGEST}"] = b"", bucket.clock_ms

    with pytest.raises(UnavailableError, match="just being removed; try again"):
        await run_in_some_order(bucket, 0, object_store(bucket).put(DIGEST, DATA))
    bucket.clock_ms += int(2 * PURGE_LIMIT_S * 1000) + 2000
    await run_in_some_order(bucket, 0, object_store(bucket).put(DIGEST, DATA))

    assert set(bucket.objects) - {"clock"} == {CHUNK}


async def test_object_store_asks_the_service_little_about_what_it_knows() -> None:
    bucket = TurnBucket()
    store = ObjectChunkStore(cast(ObjectBucket, bucket))
    served = 0

    async def serve() -> None:
        nonlocal served
        while True:
            await asyncio.sleep(0)
            while bucket.waiting:
                bucket.waiting.pop().set()
                served += 1

    serving = asyncio.create_task(serve())
    bucket.objects[CHUNK] = b"\x00x", bucket.clock_ms
    bucket.clock_ms += 24 * 3600 * 1000
    assert await store.missing([DIGEST]) == set()
    first = served
    assert [await store.missing([DIGEST]) for _ in range(5)] == [set()] * 5
    serving.cancel()

    assert served == first
    assert bucket.objects[f"touched/{DIGEST[:2]}/{DIGEST}"][1] == bucket.clock_ms // 1000 * 1000


STEPS = ("read", "stat", "write", "touch", "move", "delete")


class Interruption:
    """Does something else, whole, right before the n-th step on files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.before: Callable[[], object] | None = None
        self.after_steps = 0
        for step in STEPS:
            self._wrap(monkeypatch, step, getattr(AtomicFiles, step))

    def _wrap(self, monkeypatch: pytest.MonkeyPatch, step: str, original: Callable[..., Any]) -> None:
        def interrupted(*args: Any, **options: Any) -> Any:
            other, self.after_steps = self.before, self.after_steps - 1
            if other is not None and self.after_steps < 0:
                self.before = None
                other()
            return original(*args, **options)

        monkeypatch.setattr(AtomicFiles, step, interrupted)


@pytest.fixture
def interruption(monkeypatch: pytest.MonkeyPatch) -> Interruption:
    return Interruption(monkeypatch)


class Disk:
    """A directory with one old chunk, and what is done to it, in this thread."""

    def __init__(self, root: Path, *, in_trash: bool) -> None:
        self.store: Any = DiskChunkStore(root)
        self.name = f"{DIGEST[:2]}/{DIGEST}"
        self.store._put(self.name, DATA)
        self.since_ms = LONG_AGO_NS // 1_000_000 + 1000
        if in_trash:
            self.store._to_trash(self.name, FAR_MS)
        file = root / ("trash" if in_trash else "cas") / self.name
        os.utime(file, ns=(LONG_AGO_NS, LONG_AGO_NS))

    def collect(self) -> None:
        self.store._to_trash(self.name, self.since_ms)
        self.store._purge(self.name, FAR_MS)

    def upload(self) -> None:
        if self.store._missing([(DIGEST, self.name)]):
            self.store._put(self.name, DATA)


@pytest.mark.parametrize("in_trash", [False, True])
@pytest.mark.parametrize("outer", ["collect", "upload"])
def test_directory_keeps_what_an_uploader_was_promised(
    tmp_path: Path, interruption: Interruption, in_trash: bool, outer: str
) -> None:
    interrupted = 0
    for steps in range(20):
        disk = Disk(tmp_path / str(steps), in_trash=in_trash)
        interruption.before = disk.upload if outer == "collect" else disk.collect
        interruption.after_steps = steps

        getattr(disk, outer)()

        interrupted += interruption.before is None
        if interruption.before is not None and outer == "collect":  # it was over before: nobody asked
            continue
        assert disk.store._get(disk.name) == DATA, f"after {steps} steps"
    assert interrupted


@pytest.mark.parametrize("in_trash", [False, True])
def test_directory_never_hides_a_chunk_from_a_reader_while_it_moves(
    tmp_path: Path, interruption: Interruption, in_trash: bool
) -> None:
    for steps in range(4):
        disk = Disk(tmp_path / str(steps), in_trash=in_trash)
        interruption.before = (
            disk.upload if in_trash else lambda disk=disk: disk.store._to_trash(disk.name, disk.since_ms)
        )
        interruption.after_steps = steps

        assert disk.store._get(disk.name) == DATA
