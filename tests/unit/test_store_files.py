# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import IO

import pytest

from dovetail.artifact import CHUNK_BYTES
from dovetail.digest import sha256_file
from dovetail.errors import IntegrityError, NotFoundError, UnavailableError
from dovetail.store.disk import DiskChunkStore
from dovetail.store.files import load_file, store_file


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 6 * CHUNK_BYTES + 17])
async def test_a_file_comes_back_as_it_went_in(tmp_path: Path, size: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(random.Random(size).randbytes(size))
    store = DiskChunkStore(tmp_path)

    digest, size_bytes, chunks = await store_file(store, source)
    await load_file(store, chunks, target, digest)

    assert (digest, size_bytes) == (sha256_file(source), size)
    assert all(chunk.size_bytes == CHUNK_BYTES for chunk in chunks[:-1])
    assert target.read_bytes() == source.read_bytes()


async def test_chunks_that_are_there_are_not_written_again(tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(bytes(5 * CHUNK_BYTES))
    store = DiskChunkStore(tmp_path)

    _, _, chunks = await store_file(store, tmp_path / "zeros")

    assert len({chunk.digest for chunk in chunks}) == 1
    assert len(list((tmp_path / "cas").rglob("*/*"))) == 1


async def test_a_missing_chunk_leaves_the_old_file_and_no_scraps(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "out" / "target"
    source.write_bytes(random.Random(0).randbytes(2 * CHUNK_BYTES))
    target.parent.mkdir()
    target.write_bytes(b"old")
    store = DiskChunkStore(tmp_path)
    digest, _, chunks = await store_file(store, source)
    await store.delete(chunks[1].digest)

    with pytest.raises(NotFoundError, match=chunks[1].digest[:12]):
        await load_file(store, chunks, target, digest)

    assert [(file.name, file.read_bytes()) for file in target.parent.iterdir()] == [("target", b"old")]


async def test_a_chunk_with_other_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"right")
    store = DiskChunkStore(tmp_path)
    digest, _, chunks = await store_file(store, tmp_path / "source")
    await store.put(chunks[0].digest, b"wrong")

    with pytest.raises(IntegrityError, match="not what its digest says"):
        await load_file(store, chunks, tmp_path / "target", digest)

    assert not (tmp_path / "target").exists()


async def test_chunks_in_another_order_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(random.Random(0).randbytes(2 * CHUNK_BYTES))
    store = DiskChunkStore(tmp_path)
    digest, _, chunks = await store_file(store, source)

    with pytest.raises(IntegrityError, match=f"expected {digest[:12]}"):
        await load_file(store, chunks[::-1], tmp_path / "target", digest)

    assert not (tmp_path / "target").exists()


async def test_a_source_that_is_not_there_is_our_error(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="could not read nothing"):
        await store_file(DiskChunkStore(tmp_path), tmp_path / "nothing")


async def test_a_cancel_while_the_file_is_being_opened_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder = tmp_path / "source", tmp_path / "out"
    source.write_bytes(b"content")
    folder.mkdir()
    store = DiskChunkStore(tmp_path)
    digest, _, chunks = await store_file(store, source)
    opened: list[IO[bytes]] = []
    real_open = Path.open

    def open_and_cancel(path: Path, mode: str) -> IO[bytes]:
        file = real_open(path, mode)
        if path == source or path.parent == folder:
            opened.append(file)
            task.get_loop().call_soon_threadsafe(task.cancel)
        return file

    monkeypatch.setattr(Path, "open", open_and_cancel)
    for work in (store_file(store, source), load_file(store, chunks, folder / "target", digest)):
        task = asyncio.ensure_future(work)
        with pytest.raises(asyncio.CancelledError):
            await task

    assert len(opened) == 2
    assert all(file.closed for file in opened)
    assert list(folder.iterdir()) == []
