# SPDX-License-Identifier: Apache-2.0
"""How many requests a pipeline has in its graph at once, and how many wait before it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from dovetail.clock import Clock
from dovetail.errors import BusyError, DeadlineError, UnavailableError
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.statistics import Refusal


class Admission:
    """Lets so many requests in at once, in the order in which they came. Belongs to one event loop.

    Args:
        name: Of the pipeline.
        max_in_flight: Most requests at once; 0: no bound.
        max_queue_rows: Most rows that wait.
        clock: Judges deadlines.
        refuse: Takes why a request was not let in.

    Attributes:
        pending: Requests that wait.
    """

    def __init__(
        self,
        name: str,
        *,
        max_in_flight: int,
        max_queue_rows: int,
        clock: Clock,
        refuse: Callable[[Refusal], None] = lambda reason: None,
    ) -> None:
        self.pending = 0
        self._name = name
        self._places = asyncio.Semaphore(max_in_flight) if max_in_flight else None
        self._max_queue_rows = max_queue_rows
        self._queued_rows = 0
        self._clock = clock
        self._refuse = refuse

    @asynccontextmanager
    async def place(self, request: InferenceRequest) -> AsyncIterator[None]:
        """A place in the graph while the block runs.

        Raises:
            BusyError: Too many rows wait already.
            UnavailableError: This request waited for longer than it wanted to.
            DeadlineError: Its deadline passed while it waited.
        """
        places = self._places
        if places is None:
            self._check_deadline(request)
            yield
            return
        if places.locked():
            await self._wait(places, request)
        else:
            await places.acquire()
        try:
            self._check_deadline(request)
            yield
        finally:
            places.release()

    async def _wait(self, places: asyncio.Semaphore, request: InferenceRequest) -> None:
        if self.pending and self._queued_rows + request.rows > self._max_queue_rows:
            self._refuse(Refusal.QUEUE_FULL)
            raise BusyError("Exceeds maximum queue size")
        self.pending += 1
        self._queued_rows += request.rows
        try:
            async with asyncio.timeout(request.timeout_us / 1e6 if request.timeout_us else None):
                await places.acquire()
        except TimeoutError:
            self._refuse(Refusal.TIMEOUT)
            raise UnavailableError("Request timeout expired") from None
        finally:
            self.pending -= 1
            self._queued_rows -= request.rows

    def _check_deadline(self, request: InferenceRequest) -> None:
        if request.deadline_s is not None and self._clock.monotonic_s() >= request.deadline_s:
            self._refuse(Refusal.DEADLINE)
            raise DeadlineError(f"the deadline passed while the request waited for model '{self._name}'")
