# SPDX-License-Identifier: Apache-2.0
"""Timing a model that serves, between its requests: runs in short slices of its engine's spare time.

What lives here is how to get at the runs and when to stop; the statistics over them are `dovetail.engines.measure`'s,
whose clock this is too: on it only the engine's time passes, so waiting for callers costs no budget and no figure.
A second session would give the same figures for twice the memory, which a small device does not have.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from itertools import cycle

from dovetail.clock import Clock, SystemClock
from dovetail.engines.base import Session
from dovetail.errors import DovetailError, EngineError, UnavailableError
from dovetail.tensor import Array
from runtime_svc.served_model import ServedModel

SLICE_S = 0.01
"""Engine time of one slice; a request that comes meanwhile ends it after the run that is under way."""

PATIENCE_S = 5.0
"""How long a slice may wait for an idle engine before the measurement is put off."""


class SpareTimer:
    """Times runs of one model; `run_once` and the clock for one thread, `stop` for any.

    Args:
        model: It serves; if it is closed, the measurement ends.
        feeds: At least one input; used in turn.
        disturbed: Called after each slice with the number of runs so far; says why to put the measurement off, or "".
        clock: Times the runs, on the engine's thread.
        patience_s: See PATIENCE_S.
    """

    def __init__(
        self,
        model: ServedModel,
        feeds: Sequence[Mapping[str, Array]],
        *,
        disturbed: Callable[[int], str],
        clock: Clock | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._model = model
        self._feeds = cycle(feeds)
        self._disturbed = disturbed
        self._clock = clock or SystemClock()
        self._patience_s = patience_s
        self._ahead: deque[float] = deque()
        self._runs = 0
        self._spent_s = 0.0
        self._slice: Future[list[float]] | None = None
        self._stopped = False

    def wall_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        return self._clock.wall_ms()

    def monotonic_s(self) -> float:
        """Seconds that the engine spent in the runs that `run_once` told of."""
        return self._spent_s

    def run_once(self) -> float:
        """Seconds of the next run; blocks until the engine had time for it.

        Raises:
            UnavailableError: Not now: callers need the engine, or the model is being closed.
            EngineError: The engine failed.
        """
        if not self._ahead:
            self._ahead.extend(self._next_slice())
            self._runs += len(self._ahead)
        seconds = self._ahead.popleft()
        self._spent_s += seconds
        return seconds

    def stop(self) -> None:
        """End the measurement: whoever waits in `run_once` is told at once, or after the run under way."""
        self._stopped = True
        if self._slice is not None:
            self._slice.cancel()

    def _next_slice(self) -> list[float]:
        if why := self._disturbed(self._runs):
            raise UnavailableError(f"measuring was put off: {why}")
        self._slice = self._model.offer_spare(self._run_slice)
        if self._stopped:
            self._slice.cancel()
        try:
            return self._outcome(self._slice)
        except CancelledError:
            raise UnavailableError("measuring was put off: the model was closed or the node stops") from None
        except DovetailError:
            raise
        except Exception as exc:  # whatever a native library throws
            raise EngineError(f"the engine failed while it was measured: {type(exc).__name__}") from exc

    def _outcome(self, work: Future[list[float]]) -> list[float]:
        try:
            return work.result(self._patience_s)
        except TimeoutError:
            if work.cancel():
                raise UnavailableError(
                    f"measuring was put off: the engine had no spare time for {self._patience_s:g} s"
                ) from None
            return work.result()  # it is running; one run of a large model may take long

    def _run_slice(self, session: Session) -> list[float]:
        """On the engine's thread: runs one after another, until a request waits or the slice is over."""
        times: list[float] = []
        ended = began = self._clock.monotonic_s()
        while not times or (ended - began < SLICE_S and not self._model.pending and not self._stopped):
            feed = next(self._feeds)
            started = self._clock.monotonic_s()
            session.run(feed)
            ended = self._clock.monotonic_s()
            times.append(ended - started)
        return times
