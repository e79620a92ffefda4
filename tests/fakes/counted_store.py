# SPDX-License-Identifier: Apache-2.0
"""A chunk store in memory that counts its reads and can be made to wait or to fail."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable

from dovetail.digest import sha256_hex
from dovetail.errors import DovetailError


class CountedStore:
    """Chunks by digest.

    Attributes:
        chunks: Digest -> what `get` gives; a copy each time, as from a disk.
        reads: Digest -> how often it was read.
        at_once: The most reads that ran together.
        gate: Reads wait until it is set.
        error: Reads raise it, if it is set.
    """

    def __init__(self, *contents: bytes) -> None:
        self.chunks = {sha256_hex(content): content for content in contents}
        self.reads: Counter[str] = Counter()
        self.at_once = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: DovetailError | None = None
        self._running = 0

    async def get(self, digest: str) -> bytes | None:
        self.reads[digest] += 1
        self._running += 1
        self.at_once = max(self.at_once, self._running)
        try:
            await asyncio.sleep(0)
            await self.gate.wait()
        finally:
            self._running -= 1
        if self.error is not None:
            raise self.error
        found = self.chunks.get(digest)
        return None if found is None else bytes(bytearray(found))

    async def put(self, digest: str, data: bytes) -> None:
        self.chunks[digest] = data

    async def missing(self, digests: Iterable[str]) -> set[str]:
        return {digest for digest in digests if digest not in self.chunks}

    async def delete(self, digest: str) -> None:
        self.chunks.pop(digest, None)
