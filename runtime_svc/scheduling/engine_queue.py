# SPDX-License-Identifier: Apache-2.0
"""Between the event loop, which brings requests, and engine threads, which take runs: what every such queue has.

What waits, in which order, and what a run is made of, the kinds say.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Any

from runtime_svc.spare_time import SpareQueue, SpareWork

MAX_WAITING = 4096
"""Most requests that wait in a queue that counts requests, unless the configuration says otherwise."""


class EngineQueue(ABC):
    """A lock, spare work, and an end. For any thread.

    Attributes for the kinds:
        _changed: Guards everything here and there; told when a thread might have something to do.
        _spare: Work for a thread that has nothing else.
        _closed: No more requests are taken.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._spare = SpareQueue()
        self._closed = False

    @property
    @abstractmethod
    def pending(self) -> int:
        """Requests that wait for a run."""

    def offer_spare(self, work: SpareWork[Any]) -> None:
        """Have a thread do this when it has nothing to run; cancelled if the queue is closed before."""
        with self._changed:
            self._spare.offer(work)
            self._changed.notify_all()

    def close(self) -> None:
        """Take no more requests; those that are here are still served. Spare work that has not begun is cancelled."""
        with self._changed:
            self._closed = True
            self._spare.close()
            self._changed.notify_all()
