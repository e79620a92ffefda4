# SPDX-License-Identifier: Apache-2.0
"""Replies in this process's memory, bounded by bytes; what was not asked for the longest goes first."""

from __future__ import annotations

from collections import OrderedDict

from runtime_svc.response_cache.reply import KeptReply

ENTRY_BYTES = 512
"""Of an entry beside its arrays' elements: key, dictionary, array objects."""


class LocalStore:
    """Belongs to one event loop; its figures may be read by any thread.

    Args:
        limit_bytes: Most that all replies take together; 0 keeps none.

    Attributes:
        limit_bytes: As given.
        size_bytes: What they take now.
        evictions: Replies that had to make room for others so far.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._kept: OrderedDict[str, KeptReply] = OrderedDict()
        self.size_bytes = 0
        self.evictions = 0

    @property
    def entries(self) -> int:
        """How many replies are kept."""
        return len(self._kept)

    def takes(self, size_bytes: int) -> bool:
        """True if a reply of that size could be kept at all."""
        return size_bytes + ENTRY_BYTES <= self.limit_bytes

    def get(self, key: str) -> KeptReply | None:
        """The reply, which now goes last; None if it is not here."""
        reply = self._kept.get(key)
        if reply is not None:
            self._kept.move_to_end(key)
        return reply

    def put(self, key: str, reply: KeptReply) -> None:
        """Keep a reply, and let go of others until there is room; one that is too large is not kept."""
        self.drop(key)
        if not self.takes(reply.size_bytes):
            return
        self._kept[key] = reply
        self.size_bytes += reply.size_bytes + ENTRY_BYTES
        while self.size_bytes > self.limit_bytes:
            self.drop(next(iter(self._kept)))
            self.evictions += 1

    def drop(self, key: str) -> None:
        """Let go of a reply; harmless if it is not here."""
        reply = self._kept.pop(key, None)
        if reply is not None:
            self.size_bytes -= reply.size_bytes + ENTRY_BYTES
