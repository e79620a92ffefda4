# SPDX-License-Identifier: Apache-2.0
"""Fills an empty index from the durable tier: what makes Redis disposable.

Records that are in Redis already are left alone, so two services may do this at once and a crash half-way costs
nothing; the index counts as there only when the last step has set its epoch. A document that cannot be read is left
out and logged, so that one bad file does not keep the rest away.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterable

from google.protobuf.message import DecodeError

from compiler_svc.keys import Keys
from compiler_svc.lua_scripts import index_script
from compiler_svc.model_content import content_digest
from dovetail.artifact import Manifest
from dovetail.digest import sha256_hex
from dovetail.errors import InvalidInputError
from dovetail.pb.v1.storage_pb2 import ModelRecord
from dovetail.store.base import DocumentStore
from dovetail.store.redis_connection import Part, RedisConnection

_log = logging.getLogger(__name__)


class IndexRebuild:
    """One run; not for sharing."""

    def __init__(self, redis: RedisConnection, documents: DocumentStore, keys: Keys) -> None:
        self._redis = redis
        self._documents = documents
        self._keys = keys
        self._versions: set[tuple[str, int]] = set()
        self._links: dict[str, set[tuple[str, int]]] = {}
        self._restored = 0

    async def run(self) -> int:
        """Restore everything; returns how many records."""
        await self._restore_models()
        for key in await self._documents.keys("sequences/"):
            last = _number(await self._documents.get(key), "last")
            await self._put("sequence", key.split("/")[1], last)
        for key in await self._documents.keys("aliases/"):
            _, model, alias = key.split("/")
            version = _number(await self._documents.get(key), "version")
            if (model, version) in self._versions:
                await self._put("alias", model, alias, version)
        await self._restore_artifacts()
        await self._put("done", secrets.token_hex(16))
        _log.info(
            "index.rebuilt records=%d versions=%d artifacts=%d", self._restored, len(self._versions), len(self._links)
        )
        return self._restored

    async def _restore_models(self) -> None:
        for key in await self._documents.keys("models/"):
            data = await self._documents.get(key)
            try:
                record = ModelRecord.FromString(data or b"")
            except DecodeError:
                _log.exception("index.document_unreadable key=%s", key)
                continue
            model = record.model
            if key != f"models/{model.name}/{model.version:08d}":
                _log.error("index.document_misplaced key=%s", key)
                continue
            self._versions.add((model.name, model.version))
            await self._put("version", model.name, model.version, content_digest(record), data or b"")

    async def _restore_artifacts(self) -> None:
        extra = self._extra_links(await self._documents.keys("links/"))
        for key in await self._documents.keys("manifests/"):
            artifact_key = key.split("/")[1]
            data = await self._documents.get(key) or b""
            try:
                manifest = Manifest.from_bytes(data)
            except InvalidInputError:
                _log.exception("index.document_unreadable key=%s", key)
                continue
            owners = {(manifest.model, manifest.version), *extra.get(artifact_key, ())} & self._versions
            for model, version in sorted(owners):
                await self._put("artifact", model, version, artifact_key, sha256_hex(data), data)
            if owners:  # else it is what a deletion left behind
                self._links[artifact_key] = owners
        for key in await self._documents.keys("benchmarks/"):
            data = await self._documents.get(key) or b""
            await self._restore_benchmark(key, data)

    async def _restore_benchmark(self, key: str, data: bytes) -> None:
        artifact_key = key.split("/")[1]
        if artifact_key not in self._links:
            return
        try:
            figure = str(json.loads(data)["figure"])
            record = json.dumps(json.loads(data)["record"])
        except (ValueError, KeyError, TypeError):
            _log.exception("index.document_unreadable key=%s", key)
            return
        await self._put("benchmark", artifact_key, figure, record)

    def _extra_links(self, keys: Iterable[str]) -> dict[str, set[tuple[str, int]]]:
        links: dict[str, set[tuple[str, int]]] = {}
        for key in keys:
            _, model, version, artifact_key = key.split("/")
            links.setdefault(artifact_key, set()).add((model, int(version)))
        return links

    async def _put(self, kind: str, *values: Part) -> None:
        await self._redis.run(index_script("restore"), self._keys.prefix, kind, *values)
        self._restored += kind != "done"


def _number(document: bytes | None, name: str) -> int:
    try:
        return int(json.loads(document or b"{}")[name])
    except (ValueError, KeyError, TypeError):
        return 0
