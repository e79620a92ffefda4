# SPDX-License-Identifier: Apache-2.0
"""Parsed manifests kept in this process by digest, because negotiation reads the same ones again and again.

A manifest never changes under its digest, so what is cached here is never stale; which digests count is the index's
business. Bytes that are not what their digest says are taken from the durable tier instead, and put right in Redis.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping

from compiler_svc.keys import Keys, manifest_document
from dovetail.artifact import Manifest
from dovetail.digest import sha256_hex
from dovetail.store.base import DocumentStore
from dovetail.store.redis_connection import RedisConnection

CAPACITY = 2048  # manifests of some 10 KiB: about 20 MiB of bytes, and a few times that when parsed

_log = logging.getLogger(__name__)


class ManifestCache:
    """Least recently used manifests; safe for concurrent tasks."""

    def __init__(self, redis: RedisConnection, documents: DocumentStore, keys: Keys) -> None:
        self._redis = redis
        self._documents = documents
        self._keys = keys
        self._parsed: OrderedDict[str, tuple[Manifest, bytes]] = OrderedDict()

    async def load(self, digests: Mapping[str, str]) -> dict[str, tuple[Manifest, bytes]]:
        """Manifests by artifact key, for artifact key -> digest; one that no tier has unharmed is left out."""
        found: dict[str, tuple[Manifest, bytes]] = {}
        unknown = {key: digest for key, digest in digests.items() if digest not in self._parsed}
        for key, data in (await self._read(unknown)).items():
            found[key] = (await asyncio.to_thread(Manifest.from_bytes, data), data)
        for key, digest in digests.items():
            if digest in self._parsed:
                found[key] = self._parsed[digest]
        for key, manifest in found.items():
            self._remember(digests[key], manifest)
        return found

    async def _read(self, digests: Mapping[str, str]) -> dict[str, bytes]:
        stored = await self._redis.call_all([("GET", self._keys.manifest(key)) for key in digests])
        good: dict[str, bytes] = {}
        for (key, digest), data in zip(digests.items(), stored, strict=True):
            intact = data if data is not None and sha256_hex(data) == digest else await self._heal(key, digest)
            if intact is not None:
                good[key] = intact
        return good

    async def _heal(self, artifact_key: str, digest: str) -> bytes | None:
        data = await self._documents.get(manifest_document(artifact_key))
        if data is None or sha256_hex(data) != digest:
            _log.error("manifest.lost key=%s digest=%s", artifact_key, digest)
            return None
        await self._redis.call("SET", self._keys.manifest(artifact_key), data)
        _log.warning("manifest.healed key=%s digest=%s from=documents", artifact_key, digest)
        return data

    def _remember(self, digest: str, manifest: tuple[Manifest, bytes]) -> None:
        self._parsed[digest] = manifest
        self._parsed.move_to_end(digest)
        while len(self._parsed) > CAPACITY:
            self._parsed.popitem(last=False)
