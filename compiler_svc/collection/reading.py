# SPDX-License-Identifier: Apache-2.0
"""Reads many documents of the durable tier at once, in order and in flat memory. What is in them is not known here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from dovetail.store.base import DocumentStore

WINDOW = 64
"""Documents read at once: hides a store's latency; at the most 64 MiB are held, as no document is over 1 MiB."""

OnRead = Callable[[int, int], None]
"""Called with documents read and documents in all, of one kind."""


async def read_documents(
    documents: DocumentStore, prefix: str, *, on_read: OnRead | None = None
) -> AsyncIterator[tuple[str, bytes]]:
    """Key and content of each document whose key starts with the prefix; what was deleted meanwhile is left out.

    Everything that the iterator brings was read after the iteration began.

    Raises:
        UnavailableError: The durable tier does not answer.
    """
    keys = await documents.keys(prefix)
    for start in range(0, len(keys), WINDOW):
        window = keys[start : start + WINDOW]
        for key, data in zip(window, await _contents(documents, window), strict=True):
            if data is not None:
                yield key, data
        if on_read is not None:
            on_read(start + len(window), len(keys))


async def _contents(documents: DocumentStore, keys: Sequence[str]) -> Sequence[bytes | None]:
    return await asyncio.gather(*(documents.get(key) for key in keys))
