# SPDX-License-Identifier: Apache-2.0
"""What the index holds of the durable tier's documents: the other copy, from which a damaged document is put right."""

from __future__ import annotations

from compiler_svc.keys import Keys
from dovetail.digest import canonical_json, sha256_hex
from dovetail.store.redis_connection import RedisConnection


class IndexCopies:
    """Reads copies; safe for concurrent calls."""

    def __init__(self, redis: RedisConnection, keys: Keys | None = None) -> None:
        self._redis = redis
        self._keys = keys or Keys()

    async def copy_of(self, document: str) -> bytes | None:
        """The content that a document ought to have, or None if the index does not know. Raises UnavailableError."""
        kind, *parts = document.split("/")
        keys = self._keys
        if kind == "models" and len(parts) == 2:
            return self._found(await self._redis.call("HGET", keys.versions(parts[0]), int(parts[1])))
        if kind == "manifests" and len(parts) == 1:
            return await self._manifest(parts[0])
        if kind == "envelopes" and len(parts) == 1:
            return self._found(await self._redis.call("GET", keys.envelope(parts[0])))
        name, key, field = {
            "aliases": ("version", keys.aliases(parts[0]), parts[-1]),
            "sequences": ("last", keys.models, parts[0]),
            "quotas": ("limit_bytes", keys.quota_limits, parts[0]),
        }.get(kind, ("", "", ""))
        number = await self._redis.call("HGET", key, field) if key else None
        return None if number is None else canonical_json({name: int(number)})

    async def _manifest(self, artifact_key: str) -> bytes | None:
        data, digest = await self._redis.call_all(
            [("GET", self._keys.manifest(artifact_key)), ("HGET", self._keys.digests, artifact_key)]
        )
        if data is None or digest is None or sha256_hex(data) != digest.decode():
            return None
        return self._found(data)

    def _found(self, data: bytes | None) -> bytes | None:
        return data
