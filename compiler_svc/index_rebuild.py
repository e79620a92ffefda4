# SPDX-License-Identifier: Apache-2.0
"""Fills an index from the durable tier: what makes Redis disposable.

Records that are in Redis already are left alone, so two services may do this at once, an index that is not empty gets
what it lacks, and a crash half-way costs nothing; an empty index counts as there only when the last step has set its
epoch. A document that cannot be read is left out, logged and told, so that one bad file does not keep the rest away.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from compiler_svc.collection.reading import read_documents
from compiler_svc.collection.roots import DEFAULT_TENANT
from compiler_svc.jobs.policy import QueuePolicy
from compiler_svc.keys import Keys, model_document
from compiler_svc.lua_scripts import index_script, job_script
from compiler_svc.model_content import content_digest
from dovetail.artifact import Manifest
from dovetail.digest import sha256_hex
from dovetail.errors import InvalidInputError
from dovetail.pb.v1.storage_pb2 import ModelRecord
from dovetail.store.base import DocumentStore
from dovetail.store.redis_connection import Part, RedisConnection

STEP_RECORDS = 64
STEP_BYTES = 256 << 10
"""What one step of Redis restores at most, or one record: some milliseconds, so that others wait no longer."""

OnProgress = Callable[[int], None]
"""Called with the documents read so far."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Rebuilt:
    """What a rebuild came to.

    Attributes:
        documents: Documents read.
        restored: Records that the index lacked.
        unreadable: Keys of documents that were left out.
        versions: Model versions that the durable tier has.
        artifacts: Keys of the artifacts that it has.
    """

    documents: int = 0
    restored: int = 0
    unreadable: list[str] = field(default_factory=list)
    versions: set[tuple[str, int]] = field(default_factory=set)
    artifacts: set[str] = field(default_factory=set)


class IndexRebuild:
    """One run; not for sharing."""

    def __init__(
        self, redis: RedisConnection, documents: DocumentStore, keys: Keys, *, on_progress: OnProgress | None = None
    ) -> None:
        self._redis = redis
        self._documents = documents
        self._keys = keys
        self._on_progress = on_progress
        self._pending: list[Part] = []
        self._records = 0
        self._bytes = 0
        self._rebuilt = Rebuilt()
        self._put_back: set[tuple[str, int]] = set()

    async def run(self) -> Rebuilt:
        """Restore everything.

        Raises:
            UnavailableError: Redis or the durable tier does not answer; doing it again goes on.
        """
        while not await self._run():
            _log.warning("index.emptied_again documents=%d", self._rebuilt.documents)
            self._rebuilt = Rebuilt()
        found = self._rebuilt
        _log.info(
            "index.rebuilt records=%d versions=%d artifacts=%d unreadable=%d",
            found.restored, len(found.versions), len(found.artifacts), len(found.unreadable),
        )  # fmt: skip
        return found

    async def _run(self) -> bool:
        """Restore everything; False if Redis was emptied meanwhile, so that what was restored first is gone again."""
        token = secrets.token_hex(16)
        await self._put("begin", token)
        await self._flush()
        await self._restore_models()
        await self._restore_small()
        await self._restore_artifacts()
        await self._flush()
        await self._drop_deleted()
        await self._put("done", token)
        return await self._flush()

    async def _restore_models(self) -> None:
        async for key, data in read_documents(self._documents, "models/"):
            self._read()
            try:
                record = ModelRecord.FromString(data)
            except DecodeError:
                self._unreadable(key)
                continue
            model = record.model
            if key != f"models/{model.name}/{model.version:08d}":
                _log.error("index.document_misplaced key=%s", key)
                self._rebuilt.unreadable.append(key)
                continue
            self._rebuilt.versions.add((model.name, model.version))
            self._put_back.add((model.name, model.version))
            size_bytes = sum(file.size_bytes for file in record.files)
            tenant = record.tenant or DEFAULT_TENANT
            content = await asyncio.to_thread(content_digest, record)
            await self._put("version", model.name, model.version, content, data, tenant, size_bytes)

    async def _restore_small(self) -> None:
        """Numbers given, aliases, limits of tenants: one small JSON document each."""
        async for key, data in read_documents(self._documents, "sequences/"):
            self._read()
            await self._put("sequence", key.split("/")[1], _number(data, "last"))
        async for key, data in read_documents(self._documents, "aliases/"):
            self._read()
            _, model, alias = key.split("/")
            version = _number(data, "version")
            if (model, version) in self._rebuilt.versions:
                await self._put("alias", model, alias, version)
        async for key, data in read_documents(self._documents, "quotas/"):
            self._read()
            await self._put("quota", key.split("/")[1], _number(data, "limit_bytes"))

    async def _restore_artifacts(self) -> None:
        extra = _extra_links(await self._documents.keys("links/"))
        envelopes = dict([item async for item in read_documents(self._documents, "envelopes/")])
        async for key, data in read_documents(self._documents, "manifests/"):
            self._read()
            artifact_key = key.split("/")[1]
            try:
                manifest = await asyncio.to_thread(Manifest.from_bytes, data)
            except InvalidInputError:
                self._unreadable(key)
                continue
            owners = {(manifest.model, manifest.version), *extra.get(artifact_key, ())} & self._rebuilt.versions
            size_bytes = sum(file.size_bytes for file in manifest.files)
            envelope = envelopes.get(f"envelopes/{artifact_key}", b"")
            for model, version in sorted(owners):
                await self._put("artifact", model, version, artifact_key, sha256_hex(data), data, envelope, size_bytes)
            if owners:  # else it is what a deletion left behind
                self._rebuilt.artifacts.add(artifact_key)
        async for key, data in read_documents(self._documents, "benchmarks/"):
            self._read()
            await self._restore_benchmark(key, data)

    async def _restore_benchmark(self, key: str, data: bytes) -> None:
        artifact_key = key.split("/")[1]
        if artifact_key not in self._rebuilt.artifacts:
            return
        try:
            figure = str(json.loads(data)["figure"])
            record = json.dumps(json.loads(data)["record"])
        except (ValueError, KeyError, TypeError):
            self._unreadable(key)
            return
        await self._put("benchmark", artifact_key, figure, record)

    async def _drop_deleted(self) -> None:
        """Take out again what was deleted after it was read here, and so came back.

        A deletion that the index remembers is respected when a record is restored; this is for one that was forgotten
        when Redis was emptied. It removes the document before the index' record: where the document is still there now,
        a deletion that is yet to come takes the record that was restored.
        """
        kept = set(await self._documents.keys("models/"))
        for name, version in sorted(self._put_back):
            if model_document(name, version) not in kept:
                words: tuple[Part, ...] = (*QueuePolicy().arguments(), name, version)
                await self._redis.run(job_script("delete_model"), self._keys.prefix, *words)
                self._rebuilt.versions.discard((name, version))
                _log.info("index.deleted_meanwhile model=%s version=%d", name, version)

    async def _put(self, *words: Part) -> None:
        self._pending += [len(words), *words]
        self._records += 1
        self._bytes += sum(len(word) for word in words if isinstance(word, bytes))
        if self._records >= STEP_RECORDS or self._bytes >= STEP_BYTES:
            await self._flush()

    async def _flush(self) -> bool:
        """Send what is pending; False if that was "done" and cannot be."""
        words: Sequence[Part] = self._pending
        self._pending, self._records, self._bytes = [], 0, 0
        lacking = int(await self._redis.run(index_script("restore"), self._keys.prefix, *words))
        self._rebuilt.restored += max(lacking, 0)
        return lacking >= 0

    def _read(self) -> None:
        self._rebuilt.documents += 1
        if self._on_progress is not None:
            self._on_progress(self._rebuilt.documents)

    def _unreadable(self, key: str) -> None:
        _log.exception("index.document_unreadable key=%s", key)
        self._rebuilt.unreadable.append(key)


def _extra_links(keys: Iterable[str]) -> dict[str, set[tuple[str, int]]]:
    links: dict[str, set[tuple[str, int]]] = {}
    for key in keys:
        _, model, version, artifact_key = key.split("/")
        links.setdefault(artifact_key, set()).add((model, int(version)))
    return links


def _number(document: bytes, name: str) -> int:
    try:
        return int(json.loads(document)[name])
    except (ValueError, KeyError, TypeError):
        return 0
