# SPDX-License-Identifier: Apache-2.0
"""When a batch is closed, and with how many of the requests that could be in it. Pure.

By default a batch is what queued while the engine was busy: it is closed when an instance is free, so an idle engine
adds no delay, a busy one gets fuller batches, and there is no timer. Two things make it smaller than that:

* rows beyond the point where a larger batch serves hardly more rows per second would only make everyone in it wait for
  everyone else; that point is learned from the runs (see `run_times`);
* what another idle instance can run at the same time is left to it.

A configured delay or preferred sizes replace both: then the configuration decides.

Source: Triton Inference Server, dynamic batcher: the largest preferred size that is reached goes at once while the
oldest request is younger than the delay; a batch that cannot grow, or whose oldest request is older, goes as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from runtime_svc.scheduling.run_times import Curve

GAIN_SHARE = 0.95
"""Share of the best throughput that a batch must reach; the last twentieth is not worth everyone's wait."""

REMAINDER = 1.5
"""A batch is made smaller only if what it leaves is at least half of one, else the next would be a poor one."""

LOOK_EVERY = 64
"""Once in so many batches one is twice as large as what pays, so that it is noticed if more pays by now."""


HAND_OVER_S = 100e-6
"""What a batch costs the event loop and the switch between threads, of which its run time says nothing."""

CAREFUL_S = 0.1
"""While nothing is known about larger batches, none is run that may take longer: the first of 32 rows of a model that
takes 0.1 s for each would keep everybody waiting for 3 s."""


class CloseReason(StrEnum):
    """Why a batch had no more requests."""

    ALONE = "alone"
    FULL = "full"
    LAYOUT = "layout"
    EMPTY = "empty"
    PREFERRED = "preferred"
    DELAY = "delay"
    GAIN = "gain"
    SHARED = "shared"
    PADDING = "padding"


@dataclass(frozen=True, slots=True)
class Closing:
    """What to do about the requests at the head of the queue.

    Attributes:
        count: How many of them to run now; 0: none yet.
        reason: Why not more.
        wait_s: If none, when to look again at the latest.
    """

    count: int
    reason: CloseReason
    wait_s: float = 0.0


class Closer:
    """Closes batches under one configuration; holds no requests.

    Args:
        limit: Most rows in a batch.
        delay_s: Longest wait of the oldest request for others, while an instance is idle.
        preferred: Sizes worth waiting for.
        allowed: Sizes that batches are padded to, rising; empty: any.
    """

    def __init__(
        self, limit: int, *, delay_s: float = 0.0, preferred: Sequence[int] = (), allowed: Sequence[int] = ()
    ) -> None:
        self._limit = limit
        self._delay_s = delay_s
        self._preferred = frozenset(preferred)
        self._enough = max(preferred, default=limit)
        self._allowed = tuple(allowed)
        self._capped = 0

    def close(
        self, rows: Sequence[int], stop: CloseReason, age_s: float, *, curve: Curve | None, idle: int, draining: bool
    ) -> Closing:
        """Decide.

        Args:
            rows: Of each request that may share the batch, in order; at least one.
            stop: FULL or LAYOUT if nothing more can join, else EMPTY.
            age_s: Of the oldest of them.
            curve: What is known about their run times.
            idle: Other instances that wait for work.
            draining: Nothing more will come.
        """
        if self._preferred or self._delay_s:
            return self._configured(rows, stop, age_s, draining=draining)
        count, reason = self._worthwhile(rows, curve)
        if not count:
            count, reason = len(rows), stop
        if idle:
            count, reason = _shared(rows, count, reason, curve, idle)
        if self._allowed and curve is not None and curve.shaped:
            count, reason = self._fitting(rows, count, reason, curve)
        return Closing(count, reason)

    def _configured(self, rows: Sequence[int], stop: CloseReason, age_s: float, *, draining: bool) -> Closing:
        overdue = bool(self._delay_s) and age_s >= self._delay_s
        if not overdue:
            total, best = 0, 0
            for index, each in enumerate(rows):
                total += each
                if total in self._preferred:
                    best = index + 1
            if best:
                return Closing(best, CloseReason.PREFERRED)
        if stop is not CloseReason.EMPTY or sum(rows) >= self._enough:
            return Closing(len(rows), CloseReason.FULL if stop is CloseReason.EMPTY else stop)
        if overdue or not self._delay_s or draining:
            return Closing(len(rows), CloseReason.DELAY if overdue else CloseReason.EMPTY)
        return Closing(0, CloseReason.EMPTY, self._delay_s - age_s)

    def _worthwhile(self, rows: Sequence[int], curve: Curve | None) -> tuple[int, CloseReason]:
        """How many requests reach the throughput that is worth it; 0 if all are needed."""
        if curve is None or len(rows) == 1:
            return 0, CloseReason.GAIN
        if not curve.shaped:
            # Callers in step always bring as many rows: two small runs tell what a run alone costs.
            probe = 1 if curve.least_rows > rows[0] else _prefix(rows, curve.careful_rows(CAREFUL_S))
            return (probe if probe < len(rows) else 0), CloseReason.GAIN
        enough = curve.enough_rows(self._limit, GAIN_SHARE, HAND_OVER_S)
        if sum(rows) < REMAINDER * enough:
            return 0, CloseReason.GAIN
        count = _prefix(rows, enough)
        self._capped += 1
        if self._capped % LOOK_EVERY == 0:
            count = _prefix(rows, 2 * enough)
        return count, CloseReason.GAIN

    def _fitting(self, rows: Sequence[int], count: int, reason: CloseReason, curve: Curve) -> tuple[int, CloseReason]:
        """Fewer requests, if two runs with little padding take less time than one with much."""
        total = sum(rows[:count])
        smaller = max((size for size in self._allowed if size <= total), default=0)
        first = _prefix(rows, smaller) if smaller else count
        if smaller == total or first >= count:
            return count, reason
        taken = sum(rows[:first])
        apart_s = curve.seconds(self.padded(taken)) + curve.seconds(self.padded(total - taken))
        return (first, CloseReason.PADDING) if apart_s < curve.seconds(self.padded(total)) else (count, reason)

    def padded(self, rows: int) -> int:
        """Rows that a batch of so many is run with."""
        return next((size for size in self._allowed if size >= rows), rows)


def _prefix(rows: Sequence[int], most: int) -> int:
    """How many requests from the first on have at most so many rows together; at least one."""
    total = 0
    for index, each in enumerate(rows):
        total += each
        if total > most:
            return max(1, index)
    return len(rows)


def _shared(
    rows: Sequence[int], count: int, reason: CloseReason, curve: Curve | None, idle: int
) -> tuple[int, CloseReason]:
    """Leave other idle instances their share, unless a run costs about the same whatever its rows."""
    if count == 1:
        return count, reason
    total = sum(rows[:count])
    share = -(-total // (idle + 1))
    if curve is not None and curve.shaped and curve.seconds(share) > 0.8 * curve.seconds(total):
        return count, reason
    fair = _prefix(rows, share)
    return (fair, CloseReason.SHARED) if fair < count else (count, reason)
