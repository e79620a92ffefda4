# SPDX-License-Identifier: Apache-2.0
"""The machine's store: room is reserved, what is needed is never evicted, and nothing damaged is handed out."""

import stat
from pathlib import Path

import pytest

from dovetail.artifact import CHUNK_BYTES, ChunkRef, FileEntry, Manifest
from dovetail.digest import sha256_hex
from dovetail.errors import CancelledError, IntegrityError, InvalidInputError, NotFoundError, OverLimitError
from runtime_svc.acquire.local_cache import LocalCache, StoredManifest
from tests.fakes.acquiring_node import contents
from tests.fakes.tiny_artifacts import file_entry, manifest_of, random_bytes

CHUNK = 4096


def stored(cache: LocalCache, seed: int, *, chunks: int = 4, model: str = "digits") -> tuple[StoredManifest, bytes]:
    data = random_bytes(chunks * CHUNK, seed)
    return cache.put_manifest(manifest_of({"model.onnx": data}, model=model, chunk_bytes=CHUNK).to_bytes()), data


def fill(cache: LocalCache, manifest: Manifest, data: bytes, indices: range | None = None) -> None:
    (entry,) = manifest.files
    with cache.open_partial(entry) as partial:
        for index in indices or range(len(entry.chunks)):
            partial.write(index, data[index * CHUNK : (index + 1) * CHUNK])
        if not partial.missing():
            partial.finish(cache.path(entry.digest))


def acquired(cache: LocalCache, seed: int, **options: int) -> StoredManifest:
    item, data = stored(cache, seed, **options)
    cache.reserve(item, keep=())
    fill(cache, item.manifest, data)
    return item


def test_a_complete_file_is_read_only_and_named_by_its_digest(tmp_path: Path) -> None:
    cache = LocalCache(tmp_path)

    item = acquired(cache, 1)

    path = cache.path(item.manifest.files[0].digest)
    assert list(contents(cache, item.manifest)) == ["model.onnx"]
    assert path.name == item.manifest.files[0].digest
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list((tmp_path / "partial").iterdir()) == []


def test_a_reopened_partial_file_keeps_what_was_verified(tmp_path: Path) -> None:
    item, data = stored(LocalCache(tmp_path), 1)
    fill(LocalCache(tmp_path), item.manifest, data, range(1, 3))

    with LocalCache(tmp_path).open_partial(item.manifest.files[0]) as partial:
        assert partial.missing() == (0, 3)
        assert partial.present_bytes == 2 * CHUNK


def test_a_bitmap_that_claims_too_much_is_not_believed(tmp_path: Path) -> None:
    item, data = stored(LocalCache(tmp_path), 1)
    fill(LocalCache(tmp_path), item.manifest, data, range(1))
    (tmp_path / "partial" / item.manifest.files[0].digest / "bitmap").write_bytes(b"\xff")

    with LocalCache(tmp_path).open_partial(item.manifest.files[0]) as partial:
        assert partial.missing() == (1, 2, 3)


def test_a_wrong_chunk_is_never_written(tmp_path: Path) -> None:
    item, data = stored(LocalCache(tmp_path), 1)
    with LocalCache(tmp_path).open_partial(item.manifest.files[0]) as partial:
        with pytest.raises(IntegrityError, match="wrong bytes"):
            partial.write(0, data[CHUNK : 2 * CHUNK])

        assert partial.missing() == (0, 1, 2, 3)
    assert (tmp_path / "partial" / item.manifest.files[0].digest / "data").read_bytes() == bytes(4 * CHUNK)


def test_a_write_after_close_touches_nothing(tmp_path: Path) -> None:
    item, data = stored(LocalCache(tmp_path), 1)
    partial = LocalCache(tmp_path).open_partial(item.manifest.files[0])
    partial.close()

    with pytest.raises(CancelledError):
        partial.write(0, data[:CHUNK])
    partial.close()


def test_a_file_whose_whole_digest_is_wrong_is_thrown_away(tmp_path: Path) -> None:
    cache = LocalCache(tmp_path)
    data = random_bytes(CHUNK)
    entry = FileEntry("model.onnx", "model", CHUNK, sha256_hex(b"other"), (ChunkRef(sha256_hex(data), CHUNK),))

    with cache.open_partial(entry) as partial:
        partial.write(0, data)
        with pytest.raises(InvalidInputError, match="contradicts itself"):
            partial.finish(cache.path(entry.digest))

    assert not cache.has(entry)
    assert list((tmp_path / "partial").iterdir()) == []


@pytest.mark.parametrize("size_bytes", [CHUNK_BYTES + 1, 1 << 31])
def test_a_chunk_of_impossible_size_is_refused(tmp_path: Path, size_bytes: int) -> None:
    entry = FileEntry("model.onnx", "model", size_bytes, sha256_hex(b"x"), (ChunkRef(sha256_hex(b"x"), size_bytes),))

    with pytest.raises(InvalidInputError, match="expected 1 to"):
        LocalCache(tmp_path).open_partial(entry)


def test_a_damaged_file_is_taken_out_and_only_its_bad_chunk_is_missing(tmp_path: Path) -> None:
    cache = LocalCache(tmp_path)
    item = acquired(cache, 1)
    path = cache.path(item.manifest.files[0].digest)
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[2 * CHUNK + 7] ^= 1
    path.write_bytes(data)

    with pytest.raises(IntegrityError, match="changed on disk"):
        contents(cache, item.manifest)

    assert not cache.has(item.manifest.files[0])
    with cache.open_partial(item.manifest.files[0]) as partial:
        assert partial.missing() == (2,)


@pytest.mark.parametrize("left_bytes", [0, 1, CHUNK])
def test_a_truncated_file_is_taken_out(tmp_path: Path, left_bytes: int) -> None:
    cache = LocalCache(tmp_path)
    item = acquired(cache, 1)
    path = cache.path(item.manifest.files[0].digest)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:left_bytes])

    with pytest.raises(IntegrityError):
        contents(cache, item.manifest)

    with pytest.raises(NotFoundError):
        contents(cache, item.manifest)


def test_a_full_disk_is_told_with_numbers_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    cache = LocalCache(tmp_path, quota_bytes=3 * CHUNK)
    item, _ = stored(cache, 1)

    with pytest.raises(
        OverLimitError,
        match=rf"needs {4 * CHUNK} bytes more.* {3 * CHUNK} are free.*DOVETAIL_CACHE_BYTES.*free {CHUNK} bytes",
    ):
        cache.reserve(item, keep=())

    assert list((tmp_path / "partial").iterdir()) == []


def test_the_disk_itself_may_be_full(tmp_path: Path) -> None:
    cache = LocalCache(tmp_path, free_bytes=lambda path: 5 * CHUNK, keep_free_bytes=2 * CHUNK)
    item, _ = stored(cache, 1)

    with pytest.raises(OverLimitError, match="the disk is full"):
        cache.reserve(item, keep=())


def test_only_what_nobody_needs_is_evicted_to_make_room(tmp_path: Path) -> None:
    cache = LocalCache(tmp_path, quota_bytes=16 * CHUNK)
    current, previous, old = (acquired(cache, seed) for seed in (1, 2, 3))
    item, _ = stored(cache, 4, chunks=8)

    cache.reserve(item, keep=(current.digest, previous.digest))

    assert cache.has(current.manifest.files[0])
    assert cache.has(previous.manifest.files[0])
    assert not cache.has(old.manifest.files[0])


def test_nothing_is_evicted_while_there_is_room(tmp_path: Path) -> None:
    cache = LocalCache(tmp_path, quota_bytes=16 * CHUNK)
    old = acquired(cache, 1)
    item, _ = stored(cache, 2)

    cache.reserve(item, keep=())

    assert cache.has(old.manifest.files[0])


def test_an_artifact_on_its_way_is_not_evicted_by_another(tmp_path: Path) -> None:
    cache = LocalCache(tmp_path, quota_bytes=6 * CHUNK)
    first, data = stored(cache, 1)
    cache.reserve(first, keep=())
    fill(cache, first.manifest, data, range(1))
    second, _ = stored(cache, 2, model="other")

    with cache.hold(first.digest), pytest.raises(OverLimitError):
        cache.reserve(second, keep=())
    with cache.open_partial(first.manifest.files[0]) as partial:
        assert partial.missing() == (1, 2, 3)

    cache.reserve(second, keep=())
    assert not (tmp_path / "partial" / first.manifest.files[0].digest).exists()


def test_what_was_fetched_before_is_not_asked_room_for_again(tmp_path: Path) -> None:
    cache = LocalCache(tmp_path, quota_bytes=4 * CHUNK)
    item, data = stored(cache, 1)
    cache.reserve(item, keep=())
    fill(cache, item.manifest, data, range(2))

    LocalCache(tmp_path, quota_bytes=4 * CHUNK).reserve(item, keep=())


def test_collect_keeps_exactly_what_is_named(tmp_path: Path) -> None:
    cache = LocalCache(tmp_path)
    kept, dropped = acquired(cache, 1), acquired(cache, 2)

    cache.collect(keep=(kept.digest,))

    contents(cache, kept.manifest)
    assert cache.manifest(kept.digest) == kept
    with pytest.raises(NotFoundError):
        contents(cache, dropped.manifest)
    with pytest.raises(NotFoundError):
        cache.manifest(dropped.digest)


def test_a_manifest_that_changed_on_disk_is_not_read(tmp_path: Path) -> None:
    cache = LocalCache(tmp_path)
    item = acquired(cache, 1)
    path = tmp_path / "manifests" / item.digest
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(b"digits", b"digit5"))

    with pytest.raises(IntegrityError, match="changed on disk"):
        cache.manifest(item.digest)
    with pytest.raises(NotFoundError):
        cache.manifest(item.digest)


def test_a_name_that_is_no_digest_never_becomes_a_path(tmp_path: Path) -> None:
    cache = LocalCache(tmp_path)
    for name in ("../../etc/passwd", "a" * 63, "A" * 64):
        with pytest.raises(InvalidInputError):
            cache.path(name)
        with pytest.raises(InvalidInputError):
            cache.manifest(name)


def test_an_unwritable_store_says_so_without_naming_a_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(Exception, match="check that the folder of DOVETAIL_DATA_DIR can be read and written") as caught:
        LocalCache(tmp_path / "file")
    assert str(tmp_path) not in str(caught.value)


def test_an_empty_file_is_stored_too(tmp_path: Path) -> None:
    cache = LocalCache(tmp_path)
    entry = file_entry("empty.bin", b"")

    with cache.open_partial(entry) as partial:
        partial.finish(cache.path(entry.digest))

    assert cache.has(entry)
