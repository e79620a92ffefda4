# SPDX-License-Identifier: Apache-2.0
"""A real cache node in this process, on a free port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from cache_node.server import CacheNode, serving
from cache_node.settings import CacheSettings


@asynccontextmanager
async def cache_site(upstream: str, root: Path, **environ: str) -> AsyncIterator[CacheNode]:
    """Run it with its data below `root`; `environ` holds further DOVETAIL_* settings."""
    settings = CacheSettings.from_env(
        {
            "DOVETAIL_COMPILER": upstream,
            "DOVETAIL_DATA_DIR": str(root),
            "DOVETAIL_CACHE_ADDRESS": "127.0.0.1:0",
            "DOVETAIL_STOP_GRACE_S": "0",
            "DOVETAIL_MANIFEST_FRESH_S": "0",
            **environ,
        }
    )
    async with serving(settings) as node:
        yield node


def address_of(node: CacheNode) -> str:
    """host:port of a running cache node."""
    return f"127.0.0.1:{node.rpc.port}"
