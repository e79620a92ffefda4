# SPDX-License-Identifier: Apache-2.0
"""A node's own small files with any bytes in them: slot journals, bitmaps, partial data, and stored chunks."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.digest import sha256_hex
from dovetail.errors import DovetailError, IntegrityError, InvalidInputError
from dovetail.store.codec import decode, unpack
from runtime_svc.acquire.partial import PartialFile
from runtime_svc.acquire.slots import BLOCK_BYTES, SlotJournal, SlotState, SlotStore, decode_block, encode_block
from tests.fakes.broken_json import NOT_DOCUMENTS, wrong_documents
from tests.fakes.tiny_artifacts import file_entry, random_bytes

A, B = (sha256_hex(name) for name in (b"a", b"b"))
STATE = SlotState("digits", 3, A, B, 1, "", 0, ((B, "why"),), "")
CHUNK = 512


def block_of(document: bytes) -> bytes:
    """A block whose checksum is right whatever the document says."""
    return (struct.pack("<4sII", b"DVS1", len(document), zlib.crc32(document)) + document).ljust(BLOCK_BYTES, b"\0")


def is_usable(state: SlotState) -> bool:
    numbers = (state.seq, state.starts, state.tries)
    texts = (state.model, state.current, state.previous, state.candidate, state.offer)
    return all(type(value) is int and value >= 0 for value in numbers) and all(type(text) is str for text in texts)


def test_a_journal_block_with_any_wrong_value_is_no_record_or_one_that_can_be_used(tmp_path: Path) -> None:
    name = sha256_hex(b"digits")
    for index, document in enumerate((*wrong_documents(asdict(STATE)), *NOT_DOCUMENTS)):
        state = decode_block(block_of(document[: BLOCK_BYTES - 12]))
        assert state is None or is_usable(state), document
        if index % 40 == 0:  # the whole way, now and then
            (tmp_path / name).write_bytes(block_of(document[: BLOCK_BYTES - 12]) + encode_block(STATE))
            assert SlotStore(tmp_path).state("digits").model == "digits"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64), st.integers(0, 2 * BLOCK_BYTES), st.integers(0, 2 * BLOCK_BYTES))
def test_a_journal_with_any_bytes_in_it_can_be_opened_and_written(piece: bytes, start: int, length: int) -> None:
    good = encode_block(STATE) * 2
    with TemporaryDirectory() as folder:
        path = Path(folder) / sha256_hex(b"digits")
        path.write_bytes((good[:start] + piece + good[start + len(piece) :])[:length])

        journal = SlotJournal(path, "digits")

        assert journal.state in (SlotState("digits"), STATE)
        assert SlotStore(Path(folder)).write(journal.state.committed(B)).current == B
        assert SlotJournal(path, "digits").state.current == B


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=5), st.lists(st.integers(0, 4 * CHUNK), max_size=4), st.integers(0, 6 * CHUNK))
def test_whatever_bitmap_and_data_say_only_right_chunks_count_as_present(
    bitmap: bytes, flips: list[int], length: int
) -> None:
    data = random_bytes(4 * CHUNK + 9)
    entry = file_entry("f", data, chunk_bytes=CHUNK)
    kept = bytearray(data)
    for place in flips:
        kept[place] ^= 1
    stored = bytes(kept[:length]).ljust(length, b"\xa5")
    with TemporaryDirectory() as root:
        folder = Path(root) / entry.digest
        folder.mkdir()
        (folder / "bitmap").write_bytes(bitmap)
        (folder / "data").write_bytes(stored)
        with PartialFile(folder, entry) as partial:
            missing = set(partial.missing())
            for index in range(5):
                piece = slice(index * CHUNK, (index + 1) * CHUNK)
                assert index in missing or stored[piece] == data[piece] or index == 4
                if index in missing:
                    partial.write(index, data[piece])
            partial.finish(Path(root) / "done")
        assert (Path(root) / "done").read_bytes() == data


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 300))
def test_stored_bytes_of_any_kind_decode_within_the_limit_or_are_refused(data: bytes, limit_bytes: int) -> None:
    for read in (lambda: decode(data, limit_bytes=limit_bytes), lambda: unpack(1, data, limit_bytes=limit_bytes)):
        try:
            plain = read()
        except IntegrityError:
            continue
        assert len(plain) <= limit_bytes


@settings(max_examples=100, deadline=None)
@given(st.integers(-3, 9), st.binary(max_size=2 * CHUNK))
def test_a_partial_file_takes_nothing_but_the_right_bytes(index: int, data: bytes) -> None:
    whole = random_bytes(3 * CHUNK)
    entry = file_entry("f", whole, chunk_bytes=CHUNK)
    with TemporaryDirectory() as root, PartialFile(Path(root) / entry.digest, entry) as partial:
        if index in range(3):
            with pytest.raises(DovetailError):
                partial.write(index, data)
        assert partial.missing() == (0, 1, 2)
        assert partial.present_bytes == 0


def test_a_name_from_outside_never_becomes_a_journal_file(tmp_path: Path) -> None:
    store = SlotStore(tmp_path)
    for name in ("../x", "a/b", "", ".", "a\0", "A", "é"):
        with pytest.raises(InvalidInputError):
            store.state(name)
    (tmp_path / "stray").write_bytes(block_of(json.dumps(asdict(STATE)).encode()))
    (tmp_path / sha256_hex(b"other")).write_bytes(encode_block(STATE))

    assert SlotStore(tmp_path).models() == (), "a journal under a name that is not its model's counts for nothing"
    assert list(tmp_path.glob("**/*.tmp")) == []
