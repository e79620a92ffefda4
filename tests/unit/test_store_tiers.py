# SPDX-License-Identifier: Apache-2.0
"""Verified and tiered stores over real directories, with damaged files and a tier that can be told to fail."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import pytest

from dovetail.clock import ManualClock
from dovetail.digest import sha256_hex
from dovetail.errors import IntegrityError, OverLimitError, UnavailableError
from dovetail.store.disk import DiskChunkStore
from dovetail.store.encoded import plain_form
from dovetail.store.tiered import PAUSE_S, TieredChunkStore
from dovetail.store.verified import VerifiedChunkStore

DATA = bytes(range(256)) * 64
DIGEST = sha256_hex(DATA)


class FailingStore:
    """A tier that raises what it is told to, and counts how often it was asked."""

    def __init__(self, inner: DiskChunkStore) -> None:
        self.inner = inner
        self.error: Exception | None = None
        self.calls = 0

    async def get(self, digest: str) -> bytes | None:
        self._count()
        return await self.inner.get(digest)

    async def put(self, digest: str, data: bytes) -> None:
        self._count()
        await self.inner.put(digest, data)

    async def missing(self, digests: Iterable[str]) -> set[str]:
        self._count()
        return await self.inner.missing(digests)

    def _count(self) -> None:
        self.calls += 1
        if self.error is not None:
            raise self.error


def flip_byte(root: Path, at: int) -> None:
    file = root / "cas" / DIGEST[:2] / DIGEST
    stored = bytearray(file.read_bytes())
    stored[at] ^= 1
    file.chmod(0o640)
    file.write_bytes(stored)


@pytest.mark.parametrize("at", [0, 1, -1], ids=["codec", "first", "last"])
async def test_a_flipped_byte_is_never_returned_and_the_chunk_is_gone(tmp_path: Path, at: int) -> None:
    disk = DiskChunkStore(tmp_path)
    store = VerifiedChunkStore(disk)
    await store.put(DIGEST, DATA)
    flip_byte(tmp_path, at)

    assert await store.get(DIGEST) is None
    assert store.corrupt == 1
    assert await disk.missing([DIGEST]) == {DIGEST}


@pytest.mark.parametrize("at", [0, 1, -1], ids=["codec", "first", "last"])
async def test_a_flipped_byte_is_not_passed_on_in_the_stored_form_either(tmp_path: Path, at: int) -> None:
    disk = DiskChunkStore(tmp_path / "hot")
    hot, durable = VerifiedChunkStore(disk), VerifiedChunkStore(DiskChunkStore(tmp_path / "durable"))
    store = TieredChunkStore(hot, durable)
    await store.put(DIGEST, DATA)
    flip_byte(tmp_path / "hot", at)

    chunk = await store.get_encoded(DIGEST)

    assert chunk is not None
    assert (await plain_form(chunk)).data == DATA
    assert hot.corrupt == 1
    assert await disk.get(DIGEST) == DATA, "healed from the durable tier"


async def test_wrong_bytes_are_not_let_in(tmp_path: Path) -> None:
    store = VerifiedChunkStore(DiskChunkStore(tmp_path))

    with pytest.raises(IntegrityError, match="refused"):
        await store.put(DIGEST, DATA + b"!")

    assert await store.missing([DIGEST]) == {DIGEST}


async def test_a_chunk_that_is_wrong_in_the_hot_tier_comes_from_the_durable_one_and_heals_it(tmp_path: Path) -> None:
    hot = VerifiedChunkStore(DiskChunkStore(tmp_path / "hot"))
    store = TieredChunkStore(hot, VerifiedChunkStore(DiskChunkStore(tmp_path / "durable")))
    await store.put(DIGEST, DATA)
    flip_byte(tmp_path / "hot", -1)

    assert await store.get(DIGEST) == DATA
    assert hot.corrupt == 1
    assert await hot.get(DIGEST) == DATA


async def test_a_chunk_that_is_wrong_in_the_durable_tier_is_healed_from_the_hot_one(tmp_path: Path) -> None:
    durable = VerifiedChunkStore(DiskChunkStore(tmp_path / "durable"))
    store = TieredChunkStore(VerifiedChunkStore(DiskChunkStore(tmp_path / "hot")), durable)
    await store.put(DIGEST, DATA)
    flip_byte(tmp_path / "durable", -1)

    assert await durable.get(DIGEST) is None
    assert await store.missing([DIGEST]) == set()
    assert await durable.get(DIGEST) == DATA


async def test_a_read_falls_back_to_the_durable_tier_when_the_hot_one_misses_and_fills_it(tmp_path: Path) -> None:
    hot, durable = DiskChunkStore(tmp_path / "hot"), DiskChunkStore(tmp_path / "durable")
    await durable.put(DIGEST, DATA)

    assert await TieredChunkStore(hot, durable).get(DIGEST) == DATA
    assert await hot.get(DIGEST) == DATA


async def test_a_hot_tier_that_is_down_costs_one_question_and_one_warning_until_the_pause_is_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hot = FailingStore(DiskChunkStore(tmp_path / "hot"))
    clock = ManualClock()
    store = TieredChunkStore(hot, DiskChunkStore(tmp_path / "durable"), clock=clock)
    await store.put(DIGEST, DATA)
    hot.error, hot.calls = UnavailableError("down"), 0

    with caplog.at_level(logging.INFO, "dovetail.store.tiered"):
        reads = [await store.get(DIGEST) for _ in range(3)]
        await store.put(DIGEST, DATA)
        asked_while_down = hot.calls
        hot.error = None
        clock.advance(PAUSE_S)
        reads.append(await store.get(DIGEST))

    assert reads == [DATA] * 4
    assert asked_while_down == 1
    assert [record.message.split()[0] for record in caplog.records] == ["store.hot_down", "store.hot_back"]


async def test_a_full_hot_tier_does_not_fail_a_write(tmp_path: Path) -> None:
    hot = FailingStore(DiskChunkStore(tmp_path / "hot"))
    hot.error = OverLimitError("full")
    durable = DiskChunkStore(tmp_path / "durable")

    await TieredChunkStore(hot, durable).put(DIGEST, DATA)

    assert await durable.get(DIGEST) == DATA


async def test_a_durable_tier_that_fails_is_the_callers_error_and_the_hot_one_is_not_written(tmp_path: Path) -> None:
    durable = FailingStore(DiskChunkStore(tmp_path / "durable"))
    durable.error = OverLimitError("full")
    hot = DiskChunkStore(tmp_path / "hot")

    with pytest.raises(OverLimitError):
        await TieredChunkStore(hot, durable).put(DIGEST, DATA)

    assert await hot.missing([DIGEST]) == {DIGEST}
