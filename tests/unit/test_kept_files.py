# SPDX-License-Identifier: Apache-2.0
"""What builds keep for later ones: durable, merged without losses, and never given for another key."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler_svc import kept_files
from compiler_svc.kept_files import Given, KeptFiles
from dovetail.digest import sha256_hex
from dovetail.errors import UnavailableError
from dovetail.store.disk import DiskDocumentStore

KEY, OTHER = sha256_hex(b"an L4"), sha256_hex(b"an H100")


@pytest.fixture
def documents(tmp_path: Path) -> DiskDocumentStore:
    return DiskDocumentStore(tmp_path / "blobs")


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def contents(folder: Path, given: Given) -> set[bytes]:
    return {(folder / name).read_bytes() for name in given.files}


async def test_a_part_comes_back_for_its_key_and_for_no_other(documents: DiskDocumentStore, tmp_path: Path) -> None:
    kept = KeptFiles(documents)
    await kept.keep("tensorrt", KEY, written(tmp_path, "new", b"times"), Given())

    assert contents(tmp_path, await KeptFiles(documents).fetch("tensorrt", KEY, tmp_path)) == {b"times"}
    assert await kept.fetch("tensorrt", OTHER, tmp_path) == Given()
    assert await kept.fetch("openvino", KEY, tmp_path) == Given()
    assert await kept.fetch("tensorrt", "", tmp_path) == Given()


async def test_builds_at_the_same_time_lose_nothing(documents: DiskDocumentStore, tmp_path: Path) -> None:
    kept = KeptFiles(documents)
    await kept.keep("tensorrt", KEY, written(tmp_path, "new", b"first"), Given())
    left = await kept.fetch("tensorrt", KEY, tmp_path)
    right = await kept.fetch("tensorrt", KEY, tmp_path)

    await kept.keep("tensorrt", KEY, written(tmp_path, "new", b"first+left"), left)
    await kept.keep("tensorrt", KEY, written(tmp_path, "new", b"first+right"), right)

    assert contents(tmp_path, await kept.fetch("tensorrt", KEY, tmp_path)) == {b"first+left", b"first+right"}


async def test_a_merged_part_replaces_what_it_was_made_from(documents: DiskDocumentStore, tmp_path: Path) -> None:
    kept = KeptFiles(documents)
    for content in (b"left", b"right"):
        await kept.keep("tensorrt", KEY, written(tmp_path, "new", content), Given())
    both = await kept.fetch("tensorrt", KEY, tmp_path)

    await kept.keep("tensorrt", KEY, written(tmp_path, "new", b"left+right"), both)

    assert len(both.files) == 2
    assert contents(tmp_path, await kept.fetch("tensorrt", KEY, tmp_path)) == {b"left+right"}


async def test_a_build_that_learnt_nothing_keeps_its_part(documents: DiskDocumentStore, tmp_path: Path) -> None:
    kept = KeptFiles(documents)
    await kept.keep("tensorrt", KEY, written(tmp_path, "new", b"same"), Given())

    await kept.keep("tensorrt", KEY, written(tmp_path, "new", b"same"), await kept.fetch("tensorrt", KEY, tmp_path))

    assert contents(tmp_path, await kept.fetch("tensorrt", KEY, tmp_path)) == {b"same"}


async def test_a_damaged_part_is_dropped(documents: DiskDocumentStore, tmp_path: Path) -> None:
    document = f"kept/tensorrt/{KEY}/{sha256_hex(b'good')}"
    await documents.put(document, b"bad")

    assert await KeptFiles(documents).fetch("tensorrt", KEY, tmp_path) == Given()
    assert await documents.get(document) is None


async def test_too_large_and_empty_parts_are_not_kept(
    documents: DiskDocumentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_files, "MAX_PART_BYTES", 4)
    kept = KeptFiles(documents)

    for content in (b"12345", b""):
        await kept.keep("tensorrt", KEY, written(tmp_path, "new", content), Given())

    assert await kept.fetch("tensorrt", KEY, tmp_path) == Given()


async def test_a_store_that_does_not_answer_fails_no_build(tmp_path: Path) -> None:
    class Down(DiskDocumentStore):
        async def keys(self, prefix: str) -> list[str]:
            raise UnavailableError("the disk is gone")

        async def put(self, key: str, data: bytes) -> None:
            raise UnavailableError("the disk is gone")

    kept = KeptFiles(Down(tmp_path))

    assert await kept.fetch("tensorrt", KEY, tmp_path) == Given()
    await kept.keep("tensorrt", KEY, written(tmp_path, "new", b"times"), Given())
