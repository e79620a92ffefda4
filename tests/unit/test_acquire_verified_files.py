# SPDX-License-Identifier: Apache-2.0
"""Files that are checked and used through one descriptor: what counts as one, and that names mean nothing after."""

from __future__ import annotations

import os
import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dovetail.artifact import ChunkRef, FileEntry
from dovetail.digest import check_name, sha256_hex
from dovetail.errors import DovetailError, InvalidInputError, NotFoundError
from runtime_svc.acquire.local_cache import LocalCache
from runtime_svc.acquire.slots import SlotState, SlotStore
from runtime_svc.acquire.verified_files import hash_descriptor, open_verified
from tests.fakes.signing import signed
from tests.fakes.tiny_artifacts import file_entry, manifest_of

DATA = b"the bytes that were signed" * 1000
ENTRY = file_entry("model.onnx", DATA)
ZEROS_SHA256 = {  # head -c <size> /dev/zero | sha256sum
    (1 << 31) - 1: "25ba9187e4e7b89d2a7f1a49f0155c233ea8fe0b19c881bc53d23fd7b93deda0",
    (1 << 31) + 1: "b8030a8ab89280935633d8d991da3d9907c0f12e8b6fc3bfc515f4d440872b6e",
    (1 << 32) - 1: "318eea1453f3a536e42d9637db593982c5c297220b2019bd4b7ad08e88d91e4b",
    (1 << 32) + 1: "fbb82f7b353676bb562eb82157fcf0ea42c36492ca13ee56dbf82c08b6802c5c",
}


class RefusedError(Exception):
    pass


@contextmanager
def opened(path: Path, entry: FileEntry = ENTRY) -> Iterator[Path]:
    with open_verified({entry: path}, lambda entry, wrong: RefusedError(wrong)) as files:
        yield files[entry.name]


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / ENTRY.digest
    path.write_bytes(DATA)
    path.chmod(0o400)
    return path


def test_what_was_verified_is_read_whatever_its_name_means_by_then(stored: Path) -> None:
    with opened(stored) as path:
        evil = stored.with_name("evil")
        evil.write_bytes(b"other bytes")
        evil.rename(stored)

        assert stored.read_bytes() == b"other bytes"
        assert path.read_bytes() == DATA
        assert path.stat().st_size == len(DATA)
    assert not path.exists() or path.read_bytes() != DATA  # the descriptor is closed


def test_what_was_verified_is_read_after_its_name_is_gone(stored: Path) -> None:
    with opened(stored) as path:
        stored.unlink()

        assert path.read_bytes() == DATA


def linked(path: Path) -> None:
    os.link(path, path.with_name("other-name"))


def symlinked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def made_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def made_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def changed(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(DATA[:-1] + b"X")
    path.chmod(0o400)


def cut(path: Path) -> None:
    os.chmod(path, 0o600)
    os.truncate(path, len(DATA) - 1)
    path.chmod(0o400)


def lengthened(path: Path) -> None:
    path.chmod(0o600)
    with path.open("ab") as file:
        file.write(b"\0")
    path.chmod(0o400)


HARM = {
    linked: "could be changed by others",
    lambda path: path.chmod(0o600): "could be changed by others",
    lambda path: path.chmod(0o464): "could be changed by others",
    symlinked: "is a link",
    made_a_folder: "is no regular file",
    made_a_pipe: "is no regular file",
    changed: "changed on disk",
    cut: "changed on disk",
    lengthened: "changed on disk",
}


@pytest.mark.parametrize("harm", HARM)
def test_what_is_not_exactly_the_file_is_refused_and_nothing_stays_open(stored: Path, harm: object) -> None:
    harm(stored)  # type: ignore[operator]
    before = set(os.listdir("/proc/self/fd"))

    with pytest.raises(RefusedError, match=HARM[harm]), opened(stored):  # type: ignore[index]
        pass

    assert set(os.listdir("/proc/self/fd")) == before


def test_a_missing_file_is_told_apart_from_a_wrong_one(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"model\.onnx"), opened(tmp_path / "nothing"):
        pass


def test_a_file_with_another_name_is_not_kept_for_mending(tmp_path: Path) -> None:
    """Who holds the other name could write to it while its bad chunks are fetched again."""
    cache = LocalCache(tmp_path)
    manifest = manifest_of({"model.onnx": DATA})
    (entry,) = manifest.files
    path = cache.path(entry.digest)
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    path.chmod(0o400)
    os.link(path, tmp_path / "held-by-somebody")

    with pytest.raises(DovetailError, match="could be changed by others"), cache.verified(manifest):
        pass

    assert not path.exists()
    with cache.open_partial(entry) as partial:
        assert partial.present_bytes == 0


@pytest.mark.parametrize("size_bytes", ZEROS_SHA256)
def test_no_bit_of_a_large_size_is_lost(tmp_path: Path, size_bytes: int) -> None:
    """Who counts in 32 bits takes a file for a small one. Sparse, and told by size; tests/slow hashes such files."""
    path = tmp_path / "zeros"
    path.touch()
    os.truncate(path, size_bytes)
    path.chmod(0o400)

    for wrong in (size_bytes % (1 << 31), size_bytes % (1 << 32), size_bytes - 1, size_bytes + 1):
        chunk = ChunkRef(ZEROS_SHA256[size_bytes], wrong)
        entry = FileEntry("zeros.bin", "model", wrong, ZEROS_SHA256[size_bytes], (chunk,))
        if wrong != size_bytes:
            with pytest.raises(RefusedError, match="changed on disk"), opened(path, entry):
                pass


def test_hashing_leaves_the_position_of_the_descriptor_alone(stored: Path) -> None:
    with stored.open("rb", buffering=0) as file:
        file.seek(7)

        assert hash_descriptor(file.fileno()) == (sha256_hex(DATA), len(DATA))
        assert file.tell() == 7


# --- names


NAMES = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["..", "../../x", "/etc/passwd", "a/b", "con", "model.onnx\0", "A" * 300, "." * 3, "~", "-rf"]),
    st.text(string.ascii_lowercase + "./-_\\", max_size=20),
)
OURS = {"cas", "sha256", "partial", "manifests", "envelopes", "slots", "data", "bitmap"}


def allowed(name: str) -> bool:
    hexadecimal = len(name) in (2, 64) and set(name) <= set("0123456789abcdef")
    return name in OURS or hexadecimal


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(model=NAMES, file=NAMES, data=st.binary(min_size=1, max_size=20))
def test_only_digests_become_names_on_disk(tmp_path: Path, model: str, file: str, data: bytes) -> None:
    root = tmp_path / "node"
    cache, slots = LocalCache(root), SlotStore(root / "slots")

    try:
        manifest = manifest_of({file: data}, model=model)
        stored = cache.put_manifest(manifest.to_bytes(), signed(manifest.to_bytes()))
        cache.reserve(stored, keep=())
        slots.write(SlotState(model).begun(stored.digest))
    except InvalidInputError:
        pass

    names = [part for path in root.rglob("*") for part in path.relative_to(root).parts]
    assert [name for name in names if not allowed(name)] == []
    assert [path.name for path in tmp_path.iterdir()] == ["node"]


@given(NAMES)
def test_no_text_but_a_digest_is_ever_a_path(text: str) -> None:
    cache = LocalCache.__new__(LocalCache)  # nothing of it is touched before the name is refused
    cache._files = cache._manifests = Path("nowhere")
    for use in (cache.path, cache.manifest):
        with pytest.raises((InvalidInputError, NotFoundError)) as caught:
            use(text)
        assert caught.type is InvalidInputError or check_name(text) == text
