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


async def test_every_change_of_names_is_synced_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File, then its name, then the folder that got it, then the folder that lost it."""
    store = DiskChunkStore(tmp_path)
    steps: list[str] = []
    fsync, rename, unlink = os.fsync, Path.rename, Path.unlink

    def shown(path: str | Path) -> str:
        return "/".join(Path(path).relative_to(tmp_path).parts[:2]).replace(DIGEST[:2], "ab")

    def recorded_fsync(descriptor: int) -> None:
        steps.append(f"sync {shown(os.readlink(f'/proc/self/fd/{descriptor}'))}")
        fsync(descriptor)

    def recorded_rename(self: Path, target: Path) -> Path:
        steps.append(f"rename to {shown(target)}")
        return rename(self, target)

    def recorded_unlink(self: Path, missing_ok: bool = False) -> None:
        if self.parent.parent == tmp_path / "trash":
            steps.append(f"remove from {shown(self)}")
        unlink(self, missing_ok)

    await store.put(DIGEST, b"x")  # makes the folders
    monkeypatch.setattr("dovetail.store.durable.os.fsync", recorded_fsync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    monkeypatch.setattr(Path, "replace", recorded_rename)
    monkeypatch.setattr(Path, "unlink", recorded_unlink)
    await store.put(DIGEST, b"x")
    put = steps[:]
    assert put[0].startswith("sync cas.tmp/")
    assert put[1:] == ["rename to cas/ab", "sync cas/ab"]

    steps.clear()
    assert await store.trash(DIGEST, untouched_since_ms=1 << 50)
    assert steps == ["sync trash", "rename to trash/ab", "sync trash/ab", "sync cas/ab"]

    steps.clear()
    assert await store.purge(DIGEST, trashed_until_ms=1 << 50)
    assert steps == ["remove from trash/ab", "sync trash/ab"]


async def test_a_move_that_fails_leaves_the_chunk_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DiskChunkStore(tmp_path)
    await store.put(DIGEST, b"x")

    def failing_rename(self: Path, target: Path) -> Path:
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(Path, "rename", failing_rename)
    with pytest.raises(UnavailableError, match="could not move"):
        await store.trash(DIGEST, untouched_since_ms=1 << 50)

    assert await store.stat(DIGEST) is not None
    assert await store.get(DIGEST) == b"x"


async def test_a_chunk_that_another_user_wrote_is_touched_by_writing_it_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DiskChunkStore(tmp_path)
    await store.put(DIGEST, b"x")
    file = tmp_path / "cas" / DIGEST[:2] / DIGEST
    os.utime(file, (1000, 1000))
    inode = file.stat().st_ino

    def forbidden(*_: object) -> None:
        raise PermissionError(errno.EPERM, "not yours")

    monkeypatch.setattr("dovetail.store.atomic.os.utime", forbidden)
    assert await store.missing([DIGEST]) == set()

    found = await store.stat(DIGEST)
    assert found is not None
    assert found.touched_ms > 1_000_000
    assert file.stat().st_ino != inode
    assert await store.get(DIGEST) == b"x"
