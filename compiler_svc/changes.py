# SPDX-License-Identifier: Apache-2.0
"""One subscription to the index's changes for all watchers of this process, so that a watcher costs an event.

The hub outlives an outage of the index: it subscribes again and then wakes everybody, since changes may have been
missed meanwhile. What a change means is the watchers' business.
"""

from __future__ import annotations

import asyncio
import logging

from compiler_svc.index import Index
from dovetail.errors import UnavailableError

_log = logging.getLogger(__name__)


class ChangeHub:
    """Wakes watchers of a model; belongs to one event loop."""

    def __init__(self, index: Index, *, retry_s: float = 1.0) -> None:
        self._index = index
        self._retry_s = retry_s
        self._tickets: dict[str, asyncio.Event] = {}

    def ticket(self, model: str) -> asyncio.Event:
        """An event that the model's next change sets. Take it before you read, so that no change is missed."""
        return self._tickets.setdefault(model, asyncio.Event())

    def announce(self, model: str) -> None:
        """Wake the watchers of a model."""
        ticket = self._tickets.pop(model, None)
        if ticket is not None:
            ticket.set()

    def announce_all(self) -> None:
        """Wake all watchers."""
        for model in list(self._tickets):
            self.announce(model)

    async def run(self) -> None:
        """Follow the index until cancelled."""
        lost = False
        while True:
            try:
                async for model in self._index.changes():
                    if lost:
                        _log.info("changes.followed_again")
                        lost = False
                        self.announce_all()
                    self.announce(model)
            except UnavailableError as exc:
                if not lost:
                    _log.warning("changes.lost why=%r", str(exc))
                lost = True
            await asyncio.sleep(self._retry_s)
            self.announce_all()
