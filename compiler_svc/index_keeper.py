# SPDX-License-Identifier: Apache-2.0
"""Keeps the index as new as the durable tier: after each restart of Redis, and after publishers that crashed.

Redis writes its log to the disk once a second (`appendfsync everysec`), so a kill or a failover takes up to a second of
acknowledged writes, while its epoch and most of its data survive. Every acknowledged write has its document in the
durable tier. So whenever the server is another run than the one that the index was last compared with (its run id is
kept in the index itself), the documents are read again: what the index lacks is added, what is older is replaced, a
deletion that was lost is done again. It needs no operator, no WAITAOF (Redis 7.2) and no memory of what was under way,
and doing it twice or in two services at once does no harm. An index that is empty is filled by who reads it first
(`redis_index`).

Records are only replaced if they are what they were before their document was read, and not while they are being
published, so what happens meanwhile wins. A record without a document is left alone, unless the document of its model's
numbers says that versions were deleted: losing the durable tier must not empty the index.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress

from compiler_svc.collection.reading import read_documents
from compiler_svc.index import Index
from compiler_svc.jobs.policy import QueuePolicy
from compiler_svc.jobs.publishing import PENDING_FRONT, PublishDocuments
from compiler_svc.keys import Keys, alias_document, model_document
from compiler_svc.lua_scripts import index_script, job_script
from dovetail.digest import sha256_hex
from dovetail.errors import DovetailError, InvalidInputError
from dovetail.store.base import DocumentStore
from dovetail.store.redis_connection import Part, RedisConnection

LOOK_S = 2.0
"""How often Redis is asked whether it is still the same run."""

FINISH_S = 30.0
"""How often publishers are looked for that crashed."""

_RUN = "run"  # field of the index's META: run id of the server that it was last compared on
_log = logging.getLogger(__name__)


class IndexKeeper:
    """Compares and puts right; one for each service."""

    def __init__(
        self,
        redis: RedisConnection,
        documents: DocumentStore,
        index: Index,
        *,
        keys: Keys | None = None,
        look_s: float = LOOK_S,
    ) -> None:
        self._redis = redis
        self._documents = documents
        self._index = index
        self._keys = keys or Keys()
        self._publishing = PublishDocuments(redis, documents, self._keys)
        self._look_s = look_s
        self._finished_s = float("-inf")

    async def run(self) -> None:
        """Look now and then until cancelled; an outage is waited out."""
        lost = False
        while True:
            try:
                await self.look()
                lost = False
            except DovetailError as exc:
                if not lost:
                    _log.warning("index.not_compared why=%r", str(exc))
                lost = True
            await asyncio.sleep(self._look_s)

    async def look(self) -> bool:
        """Compare if there is reason to; returns whether there was.

        Raises:
            UnavailableError: Redis or the durable tier does not answer.
        """
        run = await self._redis.run_id()
        known = await self._redis.call("HGET", self._keys.meta, _RUN)
        if known is None or known.decode() != run:
            await self.compare()
            await self._redis.call("HSET", self._keys.meta, _RUN, run)
            return True
        now_s = asyncio.get_running_loop().time()
        if now_s - self._finished_s < FINISH_S:
            return False
        self._finished_s = now_s
        if await self._publishing.finish_abandoned():
            await self.compare()
            return True
        return False

    async def compare(self) -> None:
        """Bring the index to what the documents say. Raises UnavailableError."""
        began_s = asyncio.get_running_loop().time()
        published = await self._published()
        aliases = await self._aliases()
        finished = await self._publishing.finish_abandoned()
        under_way = {key.split("/")[1] for key in await self._documents.keys(PENDING_FRONT)}
        republished = await self._republish(published, under_way)
        rebuilt, lacking = await self._index.repair()
        replaced = republished + await self._replace_aliases(aliases)
        deleted = await self._delete_again()
        if len(lacking) > deleted:
            _log.error("index.documents_missing count=%d first=%s", len(lacking), lacking[0])
        _log.info(
            "index.compared documents=%d restored=%d replaced=%d deleted=%d finished=%d took_ms=%.0f",
            rebuilt.documents, rebuilt.restored, replaced, deleted, finished,
            (asyncio.get_running_loop().time() - began_s) * 1000,
        )  # fmt: skip

    async def _published(self) -> Mapping[str, str]:
        """Artifact key -> digest of its manifest, as the index has it."""
        flat = await self._redis.call("HGETALL", self._keys.digests)
        return {key.decode(): digest.decode() for key, digest in flat.items()}

    async def _aliases(self) -> Mapping[tuple[str, str], int]:
        """Model and alias -> version, as the index has it."""
        names = [name.decode() for name in await self._redis.call("HKEYS", self._keys.models)]
        stored = await self._redis.call_all([("HGETALL", self._keys.aliases(name)) for name in names])
        return {
            (name, alias.decode()): int(version)
            for name, aliases in zip(names, stored, strict=True)
            for alias, version in aliases.items()
        }

    async def _republish(self, published: Mapping[str, str], under_way: set[str]) -> int:
        """Put back what the documents say and the index does not, which also ends the jobs that it would repeat."""
        replaced = 0
        async for key, data in read_documents(self._documents, "manifests/"):
            artifact_key = key.split("/")[1]
            seen = published.get(artifact_key, "")
            if seen != sha256_hex(data) and artifact_key not in under_way:
                with suppress(InvalidInputError):  # an unreadable one; the rebuild says so
                    replaced += await self._publishing.republish(artifact_key, seen, data)
        return replaced

    async def _replace_aliases(self, known: Mapping[tuple[str, str], int]) -> int:
        replaced = 0
        async for key, data in read_documents(self._documents, "aliases/"):
            _, model, alias = key.split("/")
            seen, version = known.get((model, alias)), _number(data, "version")
            if seen is not None and version not in (0, seen):
                words: tuple[Part, ...] = (model, alias, seen, version)
                replaced += int(await self._redis.run(index_script("correct_alias"), self._keys.prefix, *words))
        return replaced

    async def _delete_again(self) -> int:
        """Remove what was deleted and is in the index again; returns how many versions.

        Either Redis lost the deletion, or it came while the documents were being read. A version counts as deleted if
        it has no document and its model's document of given numbers, which a deletion writes first, covers it.
        """
        deleted = 0
        async for key, data in read_documents(self._documents, "sequences/"):
            name = key.split("/")[1]
            versions, members = await self._redis.call_all(
                [("HKEYS", self._keys.versions(name)), ("HKEYS", self._keys.artifacts(name))]
            )
            known = {int(item.partition(b"/")[0]) for item in (*versions, *members)}
            doomed = [
                number
                for number in sorted(known)
                if number <= _number(data, "last") and await self._documents.get(model_document(name, number)) is None
            ]
            if doomed:
                deleted += await self._delete(name, doomed)
        return deleted

    async def _delete(self, name: str, doomed: Sequence[int]) -> int:
        arguments: tuple[Part, ...] = (*QueuePolicy().arguments(), name, *doomed)
        removed, aliases, orphans = await self._redis.run(job_script("delete_model"), self._keys.prefix, *arguments)
        for alias in aliases:
            await self._documents.delete(alias_document(name, alias.decode()))
        for orphan in orphans:
            await self._index.retire_artifact(orphan.decode())
        _log.warning("index.deleted_again model=%s versions=%s", name, list(doomed))
        return len(removed)


def _number(document: bytes | None, name: str) -> int:
    try:
        return int(json.loads(document or b"{}")[name])
    except (ValueError, KeyError, TypeError):
        return 0
