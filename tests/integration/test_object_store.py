# SPDX-License-Identifier: Apache-2.0
"""The durable tier in a real S3-compatible server: the whole service on it, and what it says when that fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dovetail.digest import sha256_hex
from dovetail.errors import IntegrityError, InvalidInputError, OverLimitError, UnavailableError
from dovetail.store.object_address import ObjectAddress
from dovetail.store.object_bucket import ObjectBucket, open_bucket
from dovetail.store.object_chunks import ObjectChunkStore
from dovetail.store.object_documents import ObjectDocumentStore
from dovetail.store.redis_connection import RedisConnection
from dovetail.store.verified import VerifiedChunkStore
from tests.fakes.redis_cycle import CHUNKS, look_at_everything, storage_on, store_and_build
from tests.fixtures_s3 import SECRET

DATA = b"dovetail " * 1000
DIGEST = sha256_hex(DATA)


def bucket_at(url: str) -> ObjectBucket:
    return open_bucket(ObjectAddress.parse(url))


async def test_index_jobs_and_chunks_live_on_it_and_come_back_when_redis_is_emptied(
    redis: RedisConnection, redis_url: str, s3_url: str, tmp_path: Path
) -> None:
    async with storage_on(tmp_path, redis_url, DOVETAIL_BLOB_URL=s3_url) as storage:
        ready = await store_and_build(storage)
        await look_at_everything(storage)
        before = await storage.index.manifest(ready)

        await redis.call("FLUSHALL")

        assert await storage.index.manifest(ready) == before
        for digest, data in CHUNKS.items():
            assert await storage.chunks.get(digest) == data

    assert list(tmp_path.iterdir()) == []  # nothing is kept on the disk


async def test_a_damaged_object_is_never_returned_and_is_gone(s3_url: str) -> None:
    bucket = bucket_at(s3_url)
    store = VerifiedChunkStore(ObjectChunkStore(bucket))
    await store.put(DIGEST, DATA)
    await bucket.put(f"cas/{DIGEST[:2]}/{DIGEST}", b"\x00" + DATA[:-1] + b"!")

    assert await store.get(DIGEST) is None
    assert store.corrupt == 1
    assert await store.missing([DIGEST]) == {DIGEST}


async def test_an_object_that_is_larger_than_anything_we_write_is_not_read(s3_url: str) -> None:
    bucket = bucket_at(s3_url)
    await bucket.put(f"cas/{DIGEST[:2]}/{DIGEST}", bytes(3 << 20))

    with pytest.raises(IntegrityError, match="at most 1048577 fit"):
        await ObjectChunkStore(bucket).get(DIGEST)


async def test_a_bucket_that_does_not_exist_is_no_empty_store(s3_url: str) -> None:
    documents = ObjectDocumentStore(bucket_at(s3_url.replace("s3://test-", "s3://other-")))

    for attempt in (documents.get("a/b"), documents.put("a/b", b""), documents.keys("a/")):
        with pytest.raises(UnavailableError, match="has no such bucket; create it or correct DOVETAIL_BLOB_URL"):
            await attempt


async def test_a_service_that_is_not_there_is_unavailable_and_told_without_secrets(
    s3_endpoint: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    store = ObjectChunkStore(bucket_at("s3://bucket/x?endpoint=http://127.0.0.1:1"))

    with pytest.raises(UnavailableError, match=r"s3://bucket/x does not serve it \(connect failed\)") as caught:
        await store.get(DIGEST)

    assert caught.value.__cause__ is None
    assert SECRET not in caplog.text + str(caught.value)


ANSWERS = {
    "forbidden": (
        403,
        b"<Error><Code>SignatureDoesNotMatch</Code><StringToSign>test-key/secret</StringToSign></Error>",
    ),
    "full": (400, b"<Error><Code>QuotaExceeded</Code></Error>"),
    "broken": (400, b"nothing that we know"),
}


@pytest.fixture
async def broken_service(request: pytest.FixtureRequest, s3_endpoint: str) -> AsyncIterator[str]:
    """A service that gives one answer to everything."""
    status, body = ANSWERS[request.param]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"s3://bucket?endpoint=http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("broken_service", "expected", "text"),
    [
        (
            "forbidden",
            UnavailableError,
            r"refuses our credentials \(SignatureDoesNotMatch\); correct AWS_ACCESS_KEY_ID",
        ),
        ("full", OverLimitError, r"is full \(QuotaExceeded\)"),
        ("broken", UnavailableError, r"does not serve it \(HTTP 400\)"),
    ],
    indirect=["broken_service"],
)
async def test_what_a_service_refuses_is_told_by_its_code_alone(
    broken_service: str, expected: type[Exception], text: str
) -> None:
    with pytest.raises(expected, match=text) as caught:
        await ObjectDocumentStore(bucket_at(broken_service)).get("a/b")

    assert "test-key" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("", "does not name a bucket"),
        ("https://bucket/x", "does not name a bucket"),
        ("s3://Bucket", "does not name a bucket"),
        ("s3://key:secret@bucket/x", "does not name a bucket"),
        ("s3://bucket/a/../b", "prefix"),
        ("s3://bucket?secret_access_key=secret", "unknown option"),
        ("s3://bucket?endpoint=http://key:secret@host", "without a user"),
        ("s3://bucket?path_style=maybe", "path_style"),
    ],
)
def test_what_is_no_address_of_an_object_store_is_refused_with_the_reason(url: str, text: str) -> None:
    with pytest.raises(InvalidInputError, match=text) as caught:
        ObjectAddress.parse(url)

    assert "=secret" not in str(caught.value)
    assert ":secret@" not in str(caught.value)


def test_an_address_is_read_and_shown() -> None:
    address = ObjectAddress.parse("s3://bucket/a/b/?endpoint=https://host:9000/&region=eu-west-1&path_style=no")

    assert address == ObjectAddress("bucket", "a/b", "https://host:9000", "eu-west-1", path_style=False)
    assert str(address) == "s3://bucket/a/b"
