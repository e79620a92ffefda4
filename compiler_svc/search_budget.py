# SPDX-License-Identifier: Apache-2.0
"""The time that an order may take: how it is divided over its builds, and its end.

Default recipes are always built. Extra recipes wait behind them in the queue; those that no worker has begun when the
budget is over are cancelled, so that a search ends when its user said. The end is kept by the process that took the
order and is independent of whether anybody still watches; if that process dies, the extra builds are simply done.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable, Sequence

from compiler_svc.jobs.base import JobQueue
from dovetail.errors import DovetailError, InvalidInputError, NotFoundError, PreconditionError

MAX_BUDGET_S = 86_400.0
NOT_TRIED = "not tried: budget over"

MEASURING_SHARE = 0.5
"""Part of the budget that goes into measuring; the rest is for building, running the gate and waiting for a worker.
A guess: on two cores, quantising a large model and judging it take about as long as measuring it well."""

MIN_MEASURE_S = 1.0
"""Less time gives figures that nobody should choose by; with a small budget fewer recipes are tried instead."""

_log = logging.getLogger(__name__)


def check_budget(budget_s: float) -> float:
    """The budget unchanged; 0 is none.

    Raises:
        InvalidInputError: Negative, not finite or over a day.
    """
    if not (math.isfinite(budget_s) and 0 <= budget_s <= MAX_BUDGET_S):
        raise InvalidInputError(f"a budget of {budget_s} s is not between 0 and {MAX_BUDGET_S:.0f} s (one day)")
    return budget_s


def measuring_share(budget_s: float, builds: int) -> float:
    """Seconds for measuring each of so many builds; 0 without a budget, which leaves it to the worker."""
    if budget_s <= 0:
        return 0.0
    return max(MIN_MEASURE_S, budget_s * MEASURING_SHARE / max(builds, 1))


class BudgetClock:
    """Ends searches when their time is over; belongs to one event loop."""

    def __init__(self, jobs: JobQueue) -> None:
        self._jobs = jobs
        self._running: set[asyncio.Task[None]] = set()

    def begin(self, artifact_keys: Iterable[str], budget_s: float) -> None:
        """From now on, let these builds wait for a worker at most so long."""
        keys = tuple(artifact_keys)
        if not keys:
            return
        task = asyncio.create_task(self._end(keys, budget_s))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _end(self, keys: Sequence[str], budget_s: float) -> None:
        await asyncio.sleep(budget_s)
        for key in keys:
            try:
                await self._jobs.cancel(key, why=NOT_TRIED, only_waiting=True)
            except (PreconditionError, NotFoundError):  # begun, ended, or its model was deleted
                continue
            except DovetailError as exc:  # the queue is away: these builds will be done after all
                _log.warning("search.not_ended key=%s why=%r", key, str(exc))
            else:
                _log.info("search.not_tried key=%s budget_s=%.0f", key, budget_s)
