# SPDX-License-Identifier: Apache-2.0
"""A Redis of the benchmark's own, with the log of production."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.fixtures_redis import RedisServer


@contextmanager
def own_redis() -> Iterator[str]:
    """Its address while the block runs: a private socket, `appendfsync everysec`."""
    server = RedisServer()
    try:
        server.start("--appendonly", "yes")
        yield server.url
    finally:
        server.close()
