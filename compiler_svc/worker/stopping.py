# SPDX-License-Identifier: Apache-2.0
"""What a worker's second signal means: give back what is being built, now.

The first one drains (`dovetail.rpc.lifecycle`). The third ends the process at once, as the kernel ends it.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@asynccontextmanager
async def hurried_by_signal(stop: asyncio.Event) -> AsyncIterator[asyncio.Event]:
    """An event that a signal sets which comes after `stop` was set; use it in the main thread."""
    hurry = asyncio.Event()
    listening = asyncio.create_task(_listen(stop, hurry))
    try:
        yield hurry
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def _listen(stop: asyncio.Event, hurry: asyncio.Event) -> None:
    await stop.wait()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        _log.info("worker.hurried signal=%s", number.name)
        hurry.set()
        for watched in _SIGNALS:
            loop.remove_signal_handler(watched)
            signal.signal(watched, signal.SIG_DFL)

    for watched in _SIGNALS:
        loop.add_signal_handler(watched, on_signal, watched)
