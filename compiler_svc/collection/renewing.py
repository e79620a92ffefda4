# SPDX-License-Identifier: Apache-2.0
"""Keeps a promise with a deadline alive while a block runs: pins, reservations, the collector's own right."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from dovetail.errors import DovetailError

_log = logging.getLogger(__name__)


@asynccontextmanager
async def renewed(renew: Callable[[], Awaitable[object]], *, every_s: float, what: str) -> AsyncIterator[None]:
    """Call `renew` now and then while the block runs; a call that fails is logged and tried again at the next time."""
    task = asyncio.create_task(_renew_for_ever(renew, every_s, what))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _renew_for_ever(renew: Callable[[], Awaitable[object]], every_s: float, what: str) -> None:
    while True:
        await asyncio.sleep(every_s)
        try:
            await renew()
        except DovetailError as exc:
            _log.warning("collection.not_renewed what=%s why=%r", what, str(exc))
