# SPDX-License-Identifier: Apache-2.0
"""What every chunk store promises, asked of each of them."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from dovetail.artifact import CHUNK_BYTES
from dovetail.digest import sha256_hex
from dovetail.errors import InvalidInputError, OverLimitError
from dovetail.store.base import ChunkStore
from dovetail.store.codec import MAX_CHUNK_BYTES, pack
from dovetail.store.disk import DiskChunkStore
from dovetail.store.encoded import EncodedReader, plain_form
from dovetail.store.object_address import ObjectAddress
from dovetail.store.object_bucket import open_bucket
from dovetail.store.object_chunks import ObjectChunkStore
from dovetail.store.redis_chunks import RedisChunkStore
from dovetail.store.redis_connection import RedisConnection
from dovetail.store.tiered import TieredChunkStore
from dovetail.store.verified import Deletable, VerifiedChunkStore

CONTENTS = {
    "empty": b"",
    "one byte": b"\x00",
    "text": b"dovetail " * 1000,
    "noise": random.Random(1).randbytes(CHUNK_BYTES),
    "zeros": bytes(CHUNK_BYTES),
}


@pytest.fixture(params=["disk", "redis", "verified", "tiered", "object"])
def store(request: pytest.FixtureRequest, redis: RedisConnection, tmp_path: Path) -> ChunkStore:
    if request.param == "object":
        return ObjectChunkStore(open_bucket(ObjectAddress.parse(request.getfixturevalue("s3_url"))))
    disk = DiskChunkStore(tmp_path)
    hot = RedisChunkStore(redis)
    stores: dict[str, ChunkStore] = {
        "disk": disk,
        "redis": hot,
        "verified": VerifiedChunkStore(disk),
        "tiered": TieredChunkStore(VerifiedChunkStore(hot), VerifiedChunkStore(disk)),
    }
    return stores[request.param]


class TestChunkStore:
    @pytest.mark.parametrize("data", CONTENTS.values(), ids=CONTENTS.keys())
    async def test_what_was_put_is_read_back_unchanged(self, store: ChunkStore, data: bytes) -> None:
        await store.put(sha256_hex(data), data)

        assert await store.get(sha256_hex(data)) == data

    @pytest.mark.parametrize("data", CONTENTS.values(), ids=CONTENTS.keys())
    async def test_a_chunk_can_be_had_in_the_form_in_which_it_is_kept(self, store: ChunkStore, data: bytes) -> None:
        await store.put(sha256_hex(data), data)
        assert isinstance(store, EncodedReader)

        chunk = await store.get_encoded(sha256_hex(data))

        assert chunk is not None
        assert (chunk.codec, chunk.data) == pack(data)
        assert chunk.size_bytes == len(data)
        assert (await plain_form(chunk)).data == data

    async def test_an_unknown_digest_reads_as_none(self, store: ChunkStore) -> None:
        assert await store.get(sha256_hex(b"never stored")) is None
        assert isinstance(store, EncodedReader)
        assert await store.get_encoded(sha256_hex(b"never stored")) is None

    async def test_missing_names_exactly_what_is_not_there(self, store: ChunkStore) -> None:
        there, absent = sha256_hex(b"there"), sha256_hex(b"absent")
        await store.put(there, b"there")

        assert await store.missing([there, absent]) == {absent}
        assert await store.missing([]) == set()

    async def test_missing_answers_for_more_digests_than_one_round_trip_holds(self, store: ChunkStore) -> None:
        digests = [sha256_hex(str(number).encode()) for number in range(600)]
        await store.put(digests[599], b"599")

        assert await store.missing(iter(digests)) == set(digests[:599])

    async def test_storing_twice_and_at_once_is_harmless(self, store: ChunkStore) -> None:
        data = b"same" * 100

        await asyncio.gather(*(store.put(sha256_hex(data), data) for _ in range(8)))

        assert await store.get(sha256_hex(data)) == data

    async def test_a_deleted_chunk_is_missing_and_deleting_again_is_harmless(self, store: ChunkStore) -> None:
        await store.put(sha256_hex(b"x"), b"x")
        assert isinstance(store, Deletable)

        await store.delete(sha256_hex(b"x"))
        await store.delete(sha256_hex(b"x"))

        assert await store.get(sha256_hex(b"x")) is None
        assert await store.missing([sha256_hex(b"x")]) == {sha256_hex(b"x")}

    async def test_a_chunk_over_the_limit_is_refused(self, store: ChunkStore) -> None:
        data = bytes(MAX_CHUNK_BYTES + 1)

        with pytest.raises(OverLimitError, match="at most"):
            await store.put(sha256_hex(data), data)

    @pytest.mark.parametrize("name", ["../../etc/passwd", "ABC", "", "0" * 63, "0" * 64 + "\n"])
    async def test_only_digests_are_names(self, store: ChunkStore, name: str) -> None:
        with pytest.raises(InvalidInputError):
            await store.get(name)
        with pytest.raises(InvalidInputError):
            await store.missing([name])
