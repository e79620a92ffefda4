# SPDX-License-Identifier: Apache-2.0
"""What all schedulers are made of: a queue, and a thread for each engine instance that takes runs from it.

Inference is native code that may take long, so it never runs on the event loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import Any

from runtime_svc.scheduling.base import SchedulerParts
from runtime_svc.scheduling.engine_queue import EngineQueue
from runtime_svc.spare_time import SpareWork


class ThreadedScheduler:
    """The part of a `Scheduler` that is the same for all; the kinds add a request's way through.

    Args:
        parts: See SchedulerParts; its sessions are closed when the threads have ended.
        queue: Where requests wait.
        serve: For each instance what its thread does, until the queue is closed and empty.
    """

    def __init__(self, parts: SchedulerParts, queue: EngineQueue, serve: Iterable[Callable[[], None]]) -> None:
        name = f"{parts.facts.name}-{parts.facts.version}"
        self._queue, self._sessions = queue, parts.sessions
        self._threads = [
            threading.Thread(target=target, name=f"{name}-{number}", daemon=True) for number, target in enumerate(serve)
        ]

    @property
    def pending(self) -> int:
        """See `Scheduler`."""
        return self._queue.pending

    @property
    def instances(self) -> int:
        """See `Scheduler`."""
        return len(self._threads)

    @property
    def alive(self) -> bool:
        """True while a thread runs; for any thread."""
        return any(thread.is_alive() for thread in self._threads)

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def offer_spare(self, work: SpareWork[Any]) -> None:
        """See `Scheduler`."""
        self._queue.offer_spare(work)

    async def close(self) -> None:
        """See `Scheduler`."""
        self._queue.close()
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        for thread in self._threads:
            thread.join()
        for session in {id(session): session for session in self._sessions}.values():  # one may be there twice
            session.close()
