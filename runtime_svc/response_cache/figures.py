# SPDX-License-Identifier: Apache-2.0
"""What a cache holds and what came of looking into it, as whoever shows metrics reads it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheFigures:
    """At one moment; counts are since the start of the process.

    Attributes:
        size_bytes: Memory that replies take.
        limit_bytes: Most that they may take.
        entries: Replies in memory.
        evictions: Replies that had to make room for others.
        memory_hits: Requests that were answered from memory.
        redis_hits: Requests that were answered from Redis, after memory had nothing.
        misses: Requests that nothing was kept for.
        redis_failures: Times that Redis failed or was too slow, and was left alone for a while.
    """

    size_bytes: int
    limit_bytes: int
    entries: int
    evictions: int
    memory_hits: int
    redis_hits: int
    misses: int
    redis_failures: int
