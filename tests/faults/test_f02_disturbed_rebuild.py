# SPDX-License-Identifier: Apache-2.0
"""F2: what happens while the index is filled from the documents: a model is deleted, or Redis is emptied once more.

Found by the tests under load: a model whose document had been read was put back after its deletion was acknowledged; an
index that was emptied half-way counted as filled; and who looked at that moment was told that there is no such thing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from compiler_svc.keys import Keys, model_document
from compiler_svc.redis_index import RedisIndex
from dovetail.errors import NotFoundError, UnavailableError
from dovetail.store.disk import DiskDocumentStore
from dovetail.store.redis_connection import RedisConnection
from tests.fakes.records import key_of, manifest_of, model_record
from tests.fakes.redis_work import publish


class DocumentsAtWork(DiskDocumentStore):
    """When the documents of artifacts are listed, those of models have been read: then something happens, once.

    With `dies_then` whoever reads them is killed when it looks at the models' documents after that. `after_put` happens
    when a document was written, once.
    """

    meanwhile: Callable[[], Awaitable[object]] | None = None
    after_put: Callable[[], Awaitable[object]] | None = None
    dies_then = False

    async def keys(self, prefix: str) -> list[str]:
        if prefix == "manifests/" and self.meanwhile is not None:
            happening, self.meanwhile = self.meanwhile, None
            await happening()
        elif prefix == "models/" and self.meanwhile is None and self.dies_then:
            raise UnavailableError("killed")
        return list(await super().keys(prefix))

    async def put(self, key: str, data: bytes) -> None:
        await super().put(key, data)
        if self.after_put is not None:
            happening, self.after_put = self.after_put, None
            await happening()


class EmptiedAfterALook(RedisConnection):
    """Redis is emptied right after somebody saw that the index is filled, once."""

    armed = False

    async def call(self, *parts: object) -> object:
        reply = await super().call(*parts)  # type: ignore[arg-type]
        if self.armed and parts[-1] == "epoch":
            self.armed = False
            await super().call("FLUSHALL")
        return reply


@pytest.mark.parametrize("empty", [False, True])
async def test_f02_model_that_is_deleted_while_the_index_is_filled_stays_deleted(
    redis: RedisConnection, tmp_path: Path, empty: bool
) -> None:
    documents = DocumentsAtWork(tmp_path)
    index, other = RedisIndex(redis, documents), RedisIndex(redis, DiskDocumentStore(tmp_path))
    await index.add_model(model_record())
    await publish(redis, documents, manifest_of(key_of("a")))
    if empty:
        await redis.call("FLUSHALL")  # then whoever deletes fills it first, and this one goes on
    documents.meanwhile = lambda: other.delete_model("digits")

    await index.repair()

    with pytest.raises(NotFoundError):
        await index.model("digits")
    assert list(await index.manifests()) == []
    with pytest.raises(NotFoundError):
        await index.manifest(key_of("a"))


async def test_f02_rebuild_that_is_killed_after_it_restored_a_deleted_model_brings_it_not_back(
    redis: RedisConnection, tmp_path: Path
) -> None:
    documents = DocumentsAtWork(tmp_path)
    index, other = RedisIndex(redis, documents), RedisIndex(redis, DiskDocumentStore(tmp_path))
    await index.add_model(model_record())
    await publish(redis, documents, manifest_of(key_of("a")))
    documents.meanwhile = lambda: other.delete_model("digits")
    documents.dies_then = True

    with pytest.raises(UnavailableError, match="killed"):
        await index.repair()

    with pytest.raises(NotFoundError):
        await other.model("digits")
    assert list(await other.manifests()) == []


async def test_f02_version_that_redis_lost_is_deleted_with_the_model(redis: RedisConnection, tmp_path: Path) -> None:
    documents = DiskDocumentStore(tmp_path)
    index = RedisIndex(redis, documents)
    for content in ("a", "b"):
        await index.add_model(model_record(content=content))
    await redis.call("HDEL", Keys().versions("digits"), "1")  # with its last second, and nobody has compared yet

    assert await index.delete_model("digits") == 2
    await index.repair()

    assert await index.models() == []


async def test_f02_push_that_meets_a_deletion_is_not_half_there(redis: RedisConnection, tmp_path: Path) -> None:
    documents = DocumentsAtWork(tmp_path)
    index, other = RedisIndex(redis, documents), RedisIndex(redis, DiskDocumentStore(tmp_path))
    await index.add_model(model_record(content="a"))
    documents.after_put = lambda: other.delete_model("digits")

    pushed, created = await index.add_model(model_record(content="b"))

    assert created
    assert pushed.model.version == 3
    assert await documents.keys("models/") == [model_document("digits", 3)]
    assert [record.model.version for record in await index.models()] == [3]


async def test_f02_index_that_is_emptied_again_while_it_is_filled_is_filled_once_more(
    redis: RedisConnection, tmp_path: Path
) -> None:
    documents = DocumentsAtWork(tmp_path)
    index = RedisIndex(redis, documents)
    await index.add_model(model_record())
    await publish(redis, documents, manifest_of(key_of("a")))
    await redis.call("FLUSHALL")
    documents.meanwhile = lambda: redis.call("FLUSHALL")

    await index.rebuild()

    assert (await index.model("digits")).model.version == 1
    assert await index.manifest(key_of("a")) == manifest_of(key_of("a")).to_bytes()


async def test_f02_nobody_is_told_that_there_is_nothing_because_redis_was_emptied_just_then(
    redis: RedisConnection, redis_url: str, tmp_path: Path
) -> None:
    documents = DiskDocumentStore(tmp_path)
    index = RedisIndex(redis, documents)
    await index.add_model(model_record())
    await publish(redis, documents, manifest_of(key_of("a")))
    redis.__class__ = EmptiedAfterALook
    looks: list[Callable[[], Awaitable[object]]] = [
        lambda: index.model("digits"),
        lambda: index.manifest(key_of("a")),
    ]

    for look in looks:
        redis.armed = True  # type: ignore[attr-defined]
        assert await look()
