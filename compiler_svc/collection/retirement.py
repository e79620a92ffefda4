# SPDX-License-Identifier: Apache-2.0
"""Manifests that are not published any more and still count for a while, because somebody may be reading them.

Deleting a model retires its manifests and building an artifact anew retires the manifest before; written first, removed
where it was second, so that a crash leaves it in both places and never in none. When it stops to count is the
collector's business.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from compiler_svc.keys import Keys, retired_document
from compiler_svc.lua_scripts import index_script
from dovetail.digest import canonical_json, sha256_hex
from dovetail.errors import InvalidInputError
from dovetail.store.base import DocumentStore
from dovetail.store.redis_connection import RedisConnection


@dataclass(frozen=True, slots=True)
class Retired:
    """A manifest and when it was retired.

    Attributes:
        at_ms: Redis' clock; kept in the document, since a copy or a backup changes a file's own times.
        manifest: Its bytes as they were stored.
    """

    at_ms: int
    manifest: bytes

    def to_bytes(self) -> bytes:
        """The document."""
        return canonical_json({"retired_at_ms": self.at_ms, "manifest": self.manifest.decode()})

    @staticmethod
    def from_bytes(data: bytes) -> Retired:
        """Read the document. `Retired.from_bytes(r.to_bytes()) == r`. Raises InvalidInputError."""
        try:
            document = json.loads(data)
            return Retired(int(document["retired_at_ms"]), str(document["manifest"]).encode())
        except (ValueError, KeyError, TypeError) as exc:
            raise InvalidInputError(f"a retired manifest is not readable: {type(exc).__name__}") from exc


async def retire(redis: RedisConnection, documents: DocumentStore, artifact_key: str, manifest: bytes) -> None:
    """Keep a manifest that is about to be removed or replaced. Retiring it again starts its time anew.

    Raises:
        UnavailableError: Redis (whose clock counts) or the durable tier does not answer.
        OverLimitError: The durable tier is full.
    """
    at_ms = int(await redis.run(index_script("now"), Keys().prefix))
    key = retired_document(artifact_key, sha256_hex(manifest))
    await documents.put(key, Retired(at_ms, manifest).to_bytes())
