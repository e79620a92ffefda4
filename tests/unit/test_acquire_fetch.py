# SPDX-License-Identifier: Apache-2.0
"""What a chunk may be, and how long to wait between attempts."""

import pytest
import zstandard

from dovetail.digest import sha256_hex
from dovetail.errors import IntegrityError
from dovetail.pb.v1 import artifacts_pb2
from runtime_svc.acquire.backoff import Backoff
from runtime_svc.acquire.fetch import plain_bytes

DATA = b"weights " * 1000


def chunk(data: bytes, codec: int = artifacts_pb2.CHUNK_CODEC_ZSTD) -> artifacts_pb2.Chunk:
    return artifacts_pb2.Chunk(digest=sha256_hex(DATA), codec=codec, data=data, size_bytes=len(DATA))


def test_plain_and_compressed_chunks_give_the_same_bytes() -> None:
    assert plain_bytes(chunk(DATA, artifacts_pb2.CHUNK_CODEC_PLAIN), len(DATA)) == DATA
    assert plain_bytes(chunk(zstandard.ZstdCompressor().compress(DATA)), len(DATA)) == DATA


def test_a_compressed_chunk_without_a_declared_size_is_read_too() -> None:
    data = zstandard.ZstdCompressor(write_content_size=False).compress(DATA)

    assert plain_bytes(chunk(data), len(DATA)) == DATA


@pytest.mark.parametrize("write_content_size", [True, False])
def test_a_chunk_that_unpacks_to_more_than_the_manifest_says_is_refused_before_it_is_unpacked(
    write_content_size: bool,
) -> None:
    bomb = zstandard.ZstdCompressor(write_content_size=write_content_size).compress(bytes(64 << 20))

    with pytest.raises(IntegrityError):
        plain_bytes(chunk(bomb), len(DATA))


@pytest.mark.parametrize("data", [b"", b"garbage", zstandard.ZstdCompressor().compress(DATA)[:-3]])
def test_a_broken_frame_is_an_integrity_error(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        plain_bytes(chunk(data), len(DATA))


def test_an_unknown_codec_is_refused_by_number() -> None:
    with pytest.raises(IntegrityError, match="codec 9"):
        plain_bytes(chunk(DATA, 9), len(DATA))


async def test_pauses_grow_are_jittered_and_capped_and_start_again_after_success() -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    backoff = Backoff(base_s=1.0, cap_s=8.0, sleep=sleep)
    for _ in range(200):
        await backoff.pause()

    assert all(0 <= pause <= 8.0 for pause in pauses)
    assert pauses[0] <= 1.0
    assert max(pauses) > 4.0
    assert len({round(pause, 6) for pause in pauses}) > 100
    backoff.reset()
    await backoff.pause()
    assert pauses[-1] <= 1.0
