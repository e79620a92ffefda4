# SPDX-License-Identifier: Apache-2.0
"""Keeps a number of front ends running: started together, each replaced when it dies, ended together."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict

from dovetail.errors import UnavailableError
from runtime_svc.acquire.backoff import Backoff
from runtime_svc.front_ends.process import FrontEndProcess
from runtime_svc.front_ends.settings import FrontEndSettings
from runtime_svc.log_control import LogSettings
from runtime_svc.protocol.inference import InferenceCore

_log = logging.getLogger(__name__)

STEADY_S = 30.0
"""One that has lived for so long did not die of its start, and is replaced at once."""


class FrontEnds:
    """All of them. Belongs to the core's event loop.

    Args:
        count: How many.
        settings: For each.
        core: Answers their calls.
        backoff: Makes the pauses between attempts to replace one.
    """

    def __init__(
        self,
        count: int,
        settings: FrontEndSettings,
        core: InferenceCore,
        *,
        backoff: Callable[[], Backoff] = lambda: Backoff(base_s=0.1, cap_s=10.0),
    ) -> None:
        self._count = count
        self._settings = settings
        self._core = core
        self._backoff = backoff
        self._running: dict[int, FrontEndProcess] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._log_settings = b""

    @property
    def running(self) -> tuple[FrontEndProcess, ...]:
        """Those that serve now."""
        return tuple(self._running.values())

    def show(self, settings: LogSettings) -> None:
        """Have all of them log so from now on, those that come later, too."""
        self._log_settings = json.dumps(asdict(settings)).encode()
        for process in self.running:
            process.link.show(self._log_settings)

    async def start(self) -> None:
        """Start all of them.

        Raises:
            UnavailableError: One does not serve; `stop` ends the others.
        """
        starts = [self._start(place) for place in range(self._count)]
        results = await asyncio.gather(*starts, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        loop = asyncio.get_running_loop()
        self._keepers = [loop.create_task(self._keep(place)) for place in range(self._count)]

    async def stop(self, grace_s: float) -> None:
        """End all of them; calls that run may go on for that long."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._keepers.clear()
        await asyncio.gather(*(process.stop(grace_s) for process in self.running))
        self._running.clear()

    async def _start(self, place: int) -> None:
        process = self._running[place] = await FrontEndProcess.start(self._settings, self._core)
        if self._log_settings:
            process.link.show(self._log_settings)
        _log.info("front_end.started place=%d pid=%d address=%s", place, process.pid, self._settings.address)

    async def _keep(self, place: int) -> None:
        backoff = self._backoff()
        while True:
            if (process := self._running.get(place)) is not None:
                since = time.monotonic()
                status = await process.wait()
                del self._running[place]
                _log.error("front_end.ended place=%d pid=%d status=%d", place, process.pid, status)
                if time.monotonic() - since >= STEADY_S:
                    backoff.reset()
            await backoff.pause()
            try:
                await self._start(place)
            except UnavailableError as error:
                _log.error("front_end.not_started place=%d why=%r", place, str(error))
