# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from compiler_svc.worker.build_spec import BuildResult
from compiler_svc.worker.publish import store_result
from compiler_svc.worker.settings import WorkerSettings
from dovetail.artifact import CHUNK_BYTES
from dovetail.errors import InvalidInputError, UnsupportedError
from dovetail.store.chunking import CHUNKERS, Chunker, chunker_named, content_defined, fixed
from dovetail.store.disk import DiskChunkStore
from dovetail.store.files import load_file, store_file

SMALL = {"fixed": fixed(64 << 10), "fastcdc": content_defined(16 << 10, largest_bytes=64 << 10)}


class Dribbling(io.BytesIO):
    """A file that gives less than it is asked for, as files may."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(size or 0, 1000))


@pytest.mark.parametrize("chunker", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("size", [0, 1, 4096, 65_535, 65_536, 65_537, 1_000_003])
def test_chunks_put_together_are_the_file_and_none_is_too_large(chunker: Chunker, size: int) -> None:
    data = random.Random(size).randbytes(size)

    pieces = list(chunker.pieces(Dribbling(data)))

    assert b"".join(pieces) == data
    assert all(0 < len(piece) <= chunker.largest_bytes for piece in pieces)


@pytest.mark.parametrize("chunker", SMALL.values(), ids=SMALL)
def test_the_same_bytes_are_cut_the_same_however_they_are_read(chunker: Chunker) -> None:
    data = random.Random(1).randbytes(500_000)

    assert list(chunker.pieces(Dribbling(data))) == list(chunker.pieces(io.BytesIO(data)))


def test_bytes_that_are_inserted_are_all_that_content_defined_chunks_move() -> None:
    before = random.Random(2).randbytes(2_000_000)
    after = before[:1000] + b"inserted" + before[1000:]

    moved = {}
    for name, chunker in SMALL.items():
        known = set(chunker.pieces(io.BytesIO(before)))
        new = [piece for piece in chunker.pieces(io.BytesIO(after)) if piece not in known]
        moved[name] = sum(map(len, new))

    assert moved["fixed"] == len(after)
    assert moved["fastcdc"] < 200_000


async def test_a_file_cut_by_content_is_stored_and_loaded_like_any_other(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(random.Random(3).randbytes(4 << 20))
    store = DiskChunkStore(tmp_path)

    digest, size, chunks = await store_file(store, source, chunker=chunker_named("fastcdc"))
    await load_file(store, chunks, tmp_path / "target", digest)

    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    assert size == 4 << 20
    assert len({chunk.size_bytes for chunk in chunks}) > 2
    assert max(chunk.size_bytes for chunk in chunks) <= CHUNK_BYTES


def test_every_named_chunker_makes_chunks_that_stores_and_devices_take() -> None:
    for name in CHUNKERS:
        assert chunker_named(name).largest_bytes <= CHUNK_BYTES


def test_an_unknown_chunker_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InvalidInputError, match=r"no chunker 'rabin'; there are fixed, fastcdc"):
        chunker_named("rabin")


def test_without_the_library_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastcdc", None)

    with pytest.raises(UnsupportedError, match=r"pip install 'dovetail\[cdc\]'"):
        chunker_named("fastcdc")


def test_a_worker_cuts_as_its_setting_says() -> None:
    assert WorkerSettings.from_env({}).chunker.name == "fixed"
    assert WorkerSettings.from_env({"DOVETAIL_CHUNKER": "fastcdc"}).chunker.name == "fastcdc"
    with pytest.raises(InvalidInputError, match="DOVETAIL_CHUNKER"):
        WorkerSettings.from_env({"DOVETAIL_CHUNKER": "rabin"})


async def test_what_a_worker_publishes_is_cut_as_its_chunker_says(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(random.Random(4).randbytes(3 << 20))
    result = cast(BuildResult, SimpleNamespace(files=[SimpleNamespace(name="model.onnx", role="model", path=path)]))

    (by_content,) = await store_result(DiskChunkStore(tmp_path), result, content_defined())
    (by_place,) = await store_result(DiskChunkStore(tmp_path), result, fixed())

    assert by_content.digest == by_place.digest
    assert len(by_content.chunks) > len(by_place.chunks)
