# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from dovetail.digest import sha256_hex
from dovetail.errors import OverLimitError, UnavailableError
from dovetail.store.disk import DiskChunkStore, DiskDocumentStore

DIGEST = sha256_hex(b"x")


async def test_a_chunk_file_is_named_by_its_digest_and_is_read_only(tmp_path: Path) -> None:
    await DiskChunkStore(tmp_path).put(DIGEST, b"x")

    assert (tmp_path / "cas" / DIGEST[:2] / DIGEST).stat().st_mode & 0o777 == 0o440


async def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path) -> None:
    store = DiskChunkStore(tmp_path, min_free_bytes=1 << 62)

    with pytest.raises(OverLimitError, match=r"no room to write .* delete models, enlarge the disk"):
        await store.put(DIGEST, b"x")

    assert await store.get(DIGEST) is None


@pytest.mark.parametrize(
    ("number", "expected", "text"),
    [(errno.ENOSPC, OverLimitError, "disk or quota is full"), (errno.EIO, UnavailableError, "Input/output error")],
)
async def test_a_write_that_fails_leaves_the_old_content_and_no_scraps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[Exception], text: str
) -> None:
    documents = DiskDocumentStore(tmp_path)
    await documents.put("a/b", b"old")

    def failing_fsync(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("dovetail.store.durable.os.fsync", failing_fsync)
    with pytest.raises(expected, match=text) as caught:
        await documents.put("a/b", b"new")

    assert str(tmp_path) not in str(caught.value)
    assert await documents.get("a/b") == b"old"
    assert list((tmp_path / "documents.tmp").iterdir()) == []


async def test_scraps_of_a_dead_process_go_at_the_next_start_and_fresh_ones_stay(tmp_path: Path) -> None:
    DiskChunkStore(tmp_path)
    stale, fresh = tmp_path / "cas.tmp" / "stale", tmp_path / "cas.tmp" / "fresh"
    for scrap in (stale, fresh):
        scrap.write_bytes(b"half")
    os.utime(stale, (time.time() - 7200, time.time() - 7200))

    DiskChunkStore(tmp_path)

    assert not stale.exists()
    assert fresh.exists()


def test_a_root_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "cas").write_bytes(b"")

    with pytest.raises(UnavailableError, match=r"could not create cas: .*DOVETAIL_DATA_DIR"):
        DiskChunkStore(tmp_path)
