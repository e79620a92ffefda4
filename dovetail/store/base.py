# SPDX-License-Identifier: Apache-2.0
"""The two halves of the store: content by digest, and documents by key.

Index and content are apart on purpose (as in the Remote Execution API: action cache and content store). Chunks are
immutable and self-naming, so losing one is a miss; the index is small and says what exists. Wrappers add behaviour,
one type and file each: verified (digest checked on every read), tiered (hot before durable).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


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


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk as a durable store keeps it.

    Attributes:
        digest: Its name.
        size_bytes: What it takes there, after compression.
        touched_ms: When it was last put or asked for (in the trash: when it came there), by the clock of `now_ms`.
    """

    digest: str
    size_bytes: int
    touched_ms: int


@runtime_checkable
class CollectableChunkStore(ChunkStore, Protocol):
    """A durable chunk store whose garbage can be collected while others read, ask and write.

    `put` and `missing` touch what they find, in the same call: whoever was told that a chunk is there may name it in a
    manifest within the grace. A chunk that nobody needs goes by `trash`, and one grace later by `purge`; until then
    whoever asks for it, by `get`, `put` or `missing`, has it. Both steps look again whether it was touched since, so a
    collector needs no lock: a chunk that `put` or `missing` promised is never taken away by a decision from before.

    Attributes:
        touch_resolution_ms: How much older than the truth `touched_ms` may be, because a store where touching is dear
            leaves out what was touched just before. A collector adds it to its grace.
    """

    touch_resolution_ms: int

    async def delete(self, digest: str) -> None:
        """Remove a chunk at once, from the trash too; only for one whose bytes are wrong. Harmless if it is not there.

        Raises:
            UnavailableError: The store does not answer; so for all methods below.
        """
        ...

    def chunks(self) -> AsyncIterator[Sequence[StoredChunk]]:
        """All chunks that are not in the trash, page by page, in no order; one that comes or goes may be left out."""
        ...

    def trashed(self) -> AsyncIterator[Sequence[StoredChunk]]:
        """All chunks in the trash, as `chunks`."""
        ...

    async def stat(self, digest: str) -> StoredChunk | None:
        """One chunk, without touching it; None if it is not here or in the trash."""
        ...

    async def trash(self, digest: str, *, untouched_since_ms: int) -> bool:
        """Put a chunk into the trash, unless it was touched after that time; returns whether it is there now."""
        ...

    async def restore(self, digest: str) -> bool:
        """Take a chunk out of the trash, touched; returns whether it was there."""
        ...

    async def purge(self, digest: str, *, trashed_until_ms: int) -> bool:
        """Remove a chunk for good that came into the trash at that time or before, unless it was wanted since.

        Returns:
            Whether it is gone.
        """
        ...

    async def now_ms(self) -> int:
        """The time in milliseconds since 1970 by the clock that `touched_ms` is taken from."""
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
