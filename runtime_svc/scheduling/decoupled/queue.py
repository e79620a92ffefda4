# SPDX-License-Identifier: Apache-2.0
"""The requests of a decoupled model: the oldest that has a caller and time is next, on whichever instance is free."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from dovetail.clock import Clock
from dovetail.engines.base import Session
from dovetail.errors import DeadlineError, DovetailError, UnavailableError
from runtime_svc.scheduling.engine_queue import EngineQueue
from runtime_svc.scheduling.reply_buffer import ReplyBuffer
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.spare_time import SpareWork


class OpenRequest:
    """A request in the queue or under way, and where its replies go.

    Args:
        request: As it came.
        expires_s: Instant after which its sender does not want it started, on the clock's monotonic scale; None: never.
    """

    def __init__(self, request: InferenceRequest, expires_s: float | None) -> None:
        self.request = request
        self.expires_s = expires_s
        self.replies = ReplyBuffer()
        self.enqueued_ns = time.perf_counter_ns()


class DecoupledQueue(EngineQueue):
    """See the module. `add` and `leave` belong to the event loop, `take` and `finish` to instances' threads.

    Args:
        model: Name, for messages.
        clock: Judges deadlines.
        most: Most requests that wait.
    """

    def __init__(self, model: str, clock: Clock, most: int) -> None:
        super().__init__()
        self._model, self._clock, self._most = model, clock, most
        self._waiting: deque[OpenRequest] = deque()
        self._running: dict[OpenRequest, Session] = {}

    @property
    def pending(self) -> int:
        """Requests that wait for an instance."""
        return len(self._waiting)

    def add(self, request: InferenceRequest) -> OpenRequest:
        """Queue a request.

        Raises:
            UnavailableError: Too many wait, or the model is being unloaded.
        """
        now_s = self._clock.monotonic_s()
        opened = OpenRequest(request, now_s + request.timeout_us / 1e6 if request.timeout_us else None)
        with self._changed:
            if self._closed:
                raise UnavailableError(f"model '{self._model}' is being unloaded")
            if len(self._waiting) >= self._most:
                raise UnavailableError("Exceeds maximum queue size")
            self._waiting.append(opened)
            self._changed.notify()
        return opened

    def leave(self, opened: OpenRequest) -> None:
        """Nobody reads any more: take the request out of the queue, or have the model told."""
        with self._changed:
            if opened in self._waiting:
                self._waiting.remove(opened)
            session = self._running.get(opened)
            cancel = getattr(session, "cancel", None)
            if cancel is not None:
                cancel()  # while the request is known to be the session's present run

    def take(self, session: Session) -> OpenRequest | SpareWork[Any] | None:
        """What that session is to run next, else spare work; blocks while there is neither. None once all is over."""
        with self._changed:
            while True:
                while self._waiting:
                    opened = self._waiting.popleft()
                    fault = self._reason_to_drop(opened)
                    if fault is None:
                        self._running[opened] = session
                        return opened
                    opened.replies.finish(fault)
                if self._closed:
                    return None
                if self._spare:
                    return self._spare.take()
                self._changed.wait()

    def finish(self, opened: OpenRequest) -> None:
        """Its run has ended."""
        with self._changed:
            del self._running[opened]

    def _reason_to_drop(self, opened: OpenRequest) -> DovetailError | None:
        now_s = self._clock.monotonic_s()
        if opened.request.deadline_s is not None and now_s >= opened.request.deadline_s:
            return DeadlineError(f"the deadline passed while the request waited for model '{self._model}'")
        if opened.expires_s is not None and now_s >= opened.expires_s:
            return UnavailableError("Request timeout expired")
        return None
