# SPDX-License-Identifier: Apache-2.0
"""The durable tier's documents in an S3-compatible store, below `documents/`."""

from __future__ import annotations

from dovetail.store.disk import document_name
from dovetail.store.object_bucket import ObjectBucket

MAX_DOCUMENT_BYTES = 1 << 28
"""Largest that is read; the largest that anything writes is a quarter of it (`compiler_svc.kept_files`)."""


class ObjectDocumentStore:
    """Documents as objects `documents/<key>`; the service replaces an object whole or not at all."""

    def __init__(self, bucket: ObjectBucket) -> None:
        self._bucket = bucket

    async def get(self, key: str) -> bytes | None:
        """See `DocumentStore.get`."""
        return await self._bucket.get(f"documents/{document_name(key)}", limit_bytes=MAX_DOCUMENT_BYTES)

    async def put(self, key: str, data: bytes) -> None:
        """See `DocumentStore.put`."""
        await self._bucket.put(f"documents/{document_name(key)}", data)

    async def delete(self, key: str) -> None:
        """See `DocumentStore.delete`."""
        await self._bucket.delete(f"documents/{document_name(key)}")

    async def keys(self, prefix: str) -> list[str]:
        """See `DocumentStore.keys`."""
        folder = prefix.rpartition("/")[0]
        start = f"documents/{document_name(folder)}" if folder else "documents"
        found = []
        async for page in self._bucket.list(start):
            found += [entry.name.removeprefix("documents/") for entry in page]
        return sorted(key for key in found if key.startswith(prefix))
