# SPDX-License-Identifier: Apache-2.0
"""Work for an engine that no caller waits for: it gets an engine's thread only while no request is queued.

What the work is, its giver knows; when it may run, each kind of scheduler decides, and has the thread. Work cannot be
interrupted, so whoever gives some keeps each piece short and asks between two inferences whether a request waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from dovetail.engines.base import Session

T = TypeVar("T")


class SpareWork(Generic[T]):
    """One piece of work and its outcome.

    Args:
        work: Called once with the thread's session; must not keep it.

    Attributes:
        future: The outcome. Cancelled if the model is closed before the work began; may be cancelled by whoever waits.
    """

    def __init__(self, work: Callable[[Session], T]) -> None:
        self.future: Future[T] = Future()
        self._work = work

    def run(self, session: Session) -> None:
        """Do it, on the engine's thread; never raises what the work raises."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self._work(session))
        except Exception as exc:  # it belongs to whoever waits; the engine's thread must outlive it
            self.future.set_exception(exc)


class SpareQueue:
    """Spare work that waits for its time. Its owner's lock guards it; true while there is some."""

    def __init__(self) -> None:
        self._waiting: deque[SpareWork[Any]] = deque()
        self._closed = False

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def offer(self, work: SpareWork[Any]) -> None:
        """Keep it until it is taken; cancel it if that will not happen any more."""
        if self._closed:
            work.future.cancel()
        else:
            self._waiting.append(work)

    def take(self) -> SpareWork[Any]:
        """The piece that has waited for the longest; there must be one."""
        return self._waiting.popleft()

    def close(self) -> None:
        """Cancel what waits, and what will be offered."""
        self._closed = True
        while self._waiting:
            self._waiting.popleft().future.cancel()
