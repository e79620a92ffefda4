# SPDX-License-Identifier: Apache-2.0
"""The agent on a device: a node with a small footprint that needs the network for news only.

It plans, fetches, verifies, tries, commits and falls back with the same code as a runtime service
(`runtime_svc.acquire`). What lives here is what a device needs beside that: keeping the process small.
"""

from __future__ import annotations

import asyncio
import gc
import logging

from edge_agent.footprint import give_back_memory, limit_arenas, resident_bytes
from runtime_svc.node import run_node
from runtime_svc.settings import NodeSettings

_log = logging.getLogger(__name__)


async def run_agent(settings: NodeSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set; what is on disk serves first, whatever the network does.

    Raises:
        UnavailableError: The address or the data directory is taken.
    """
    limit_arenas()
    await run_node(settings, stop, _settle_down)


def _settle_down() -> None:
    """After the start: return what loading used, and keep the collector off what lives for ever."""
    gc.collect()
    gc.freeze()
    give_back_memory()
    _log.info("agent.started rss_mib=%d", resident_bytes() >> 20)
