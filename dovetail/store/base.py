# SPDX-License-Identifier: Apache-2.0
"""The two halves of the store: content by digest, and documents by key.

Index and content are apart on purpose (as in the Remote Execution API: action cache and content store). Chunks are
immutable and self-naming, so losing one is a miss; the index is small and says what exists. Wrappers add behaviour,
one type and file each: verified (digest checked on every read), tiered (hot before durable).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class ChunkStore(Protocol):
    """Immutable bytes by sha256. All methods are safe to call concurrently and never block the event loop."""

    async def get(self, digest: str) -> bytes | None:
        """The plain bytes, or None if this store does not have them.

        Raises:
            UnavailableError: The store does not answer.
        """
        ...

    async def put(self, digest: str, data: bytes) -> None:
        """Keep the bytes; storing the same digest again is harmless. When it returns, a reader will find them whole.

        Raises:
            UnavailableError: The store does not answer.
            OverLimitError: No room.
        """
        ...

    async def missing(self, digests: Iterable[str]) -> set[str]:
        """Those of the digests that are not here; those that are, are protected from eviction for a while."""
        ...


class DocumentStore(Protocol):
    """Small durable documents by path-like key ("manifests/<digest>", "models/<name>/000001"), overwritten whole."""

    async def get(self, key: str) -> bytes | None:
        """The document, or None."""
        ...

    async def put(self, key: str, data: bytes) -> None:
        """Write it; atomic and durable when it returns."""
        ...

    async def delete(self, key: str) -> None:
        """Remove it; removing what is not there is harmless."""
        ...

    async def keys(self, prefix: str) -> list[str]:
        """Keys that start with the prefix, sorted."""
        ...
