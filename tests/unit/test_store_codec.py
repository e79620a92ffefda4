# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from dovetail.errors import IntegrityError
from dovetail.store.codec import MAX_CHUNK_BYTES, Codec, decode, encode, pack, unpack


@given(st.binary(max_size=4096))
def test_decode_undoes_encode(data: bytes) -> None:
    assert decode(encode(data)) == data


def test_compression_is_used_only_where_it_pays() -> None:
    assert pack(bytes(10_000))[0] is Codec.ZSTD
    assert pack(random.Random(0).randbytes(10_000))[0] is Codec.PLAIN


def test_a_bomb_that_declares_its_size_is_refused_before_anything_is_allocated() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))

    with pytest.raises(IntegrityError, match="declare 67108864 bytes"):
        unpack(Codec.ZSTD, bomb)


def test_a_bomb_that_hides_its_size_is_refused() -> None:
    bomb = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 << 20))

    with pytest.raises(IntegrityError, match="damaged"):
        unpack(Codec.ZSTD, bomb)


def test_a_frame_of_unknown_size_within_the_limit_is_read() -> None:
    packed = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000))

    assert unpack(Codec.ZSTD, packed) == bytes(1000)


@pytest.mark.parametrize("write_content_size", [True, False])
def test_a_chunk_that_unpacks_to_more_than_its_reader_expects_is_refused(write_content_size: bool) -> None:
    packed = zstandard.ZstdCompressor(write_content_size=write_content_size).compress(bytes(1001))

    with pytest.raises(IntegrityError):
        unpack(Codec.ZSTD, packed, limit_bytes=1000)


def test_an_unknown_codec_is_refused_by_number() -> None:
    with pytest.raises(IntegrityError, match="encoding 9"):
        unpack(9, b"abc")


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"\x07abc",
        b"\x01not zstd",
        encode(bytes(5000))[:-3],
        encode(bytes(5000)) + b"tail",
        bytes(MAX_CHUNK_BYTES + 2),
    ],
    ids=["empty", "unknown codec", "garbage", "truncated", "trailing", "too large"],
)
def test_what_was_not_written_by_encode_is_an_integrity_error(stored: bytes) -> None:
    with pytest.raises(IntegrityError):
        decode(stored)
