# SPDX-License-Identifier: Apache-2.0
"""Refusing what could only be answered too late: when a request comes, and again when its run would begin.

When it comes, the prediction is meant to be too good rather than too bad, because a refusal cannot be taken back: it
counts only what is queued before the request, at the best measured cost of a row, spread over all instances, and
nothing for what runs already. It refuses nothing until enough was measured, and nothing into an empty queue, so that a
model that became slow for a while is measured again.

When its run would begin, the prediction is meant to be too bad rather than too good. Under overload the request that
has waited the longest is always close to its deadline: if it is run nevertheless, its answer comes too late, the next
one has become as old meanwhile, and an engine that is busy all the time answers hardly anybody. How much too bad,
`Prudence` learns from the answers that came too late.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from dovetail.errors import DeadlineError
from runtime_svc.scheduling.run_times import RunTimes

ENOUGH_RUNS = 32
"""Runs of a layout before its times decide about anybody's request."""

OPTIMISM = 0.8
"""What is predicted is taken to be too long by a quarter."""

LEAST_PRUDENCE, MOST_PRUDENCE = 1.25, 3.0
LATE_RISE, TIMELY_FALL = 1.25, 0.98
"""By these about one run in twelve may end too late: 1.25 * 0.98 ** 11 is 1."""

WAY_S = 0.005
"""Between the end of a run and the moment when its answer can be with the caller."""


def predicted_wait_s(times: RunTimes, rows_before: int, *, limit: int, instances: int) -> float:
    """Least time until so many rows are served; 0 while nothing is known."""
    return rows_before * times.cheapest_row_s(max(1, limit)) / instances


def check_deadline(
    model: str,
    times: RunTimes,
    layout: Hashable,
    *,
    rows: int,
    rows_before: int,
    remaining_s: float,
    limit: int,
    instances: int,
) -> None:
    """Make sure that a request has a chance.

    Args:
        model: Name, for messages.
        times: What is known about the model's runs.
        layout: Of the request.
        rows: Of the request.
        rows_before: Rows that are queued before it.
        remaining_s: Until its deadline.
        limit: Most rows in a batch.
        instances: Engine instances.

    Raises:
        DeadlineError: It has none; the text says how much is queued.
    """
    curve = times.of(layout)
    if curve is None or curve.runs < ENOUGH_RUNS or not rows_before:
        return
    wait_s = predicted_wait_s(times, rows_before, limit=limit, instances=instances)
    own_s = rows * curve.row_seconds(max(rows, limit, 1))
    if OPTIMISM * (wait_s + own_s) > remaining_s:
        raise DeadlineError(
            f"the request was not queued for model '{model}': {rows_before} rows wait before it, so its answer would"
            f" take {wait_s + own_s:.3f} s, and its deadline is in {max(0.0, remaining_s):.3f} s; send fewer requests"
            " at once, or allow more time"
        )


class Prudence:
    """What the predicted time of a run is multiplied by before it is held against deadlines.

    Run times differ, the more the busier the machine is, and the oldest request is always as old as it may be: were the
    factor too small, all answers would come a little too late. It has no lock of its own.

    Attributes:
        factor: At least 1.25.
    """

    def __init__(self) -> None:
        self.factor = LEAST_PRUDENCE

    def learn(self, remaining_s: float) -> None:
        """A run ended that long before the first deadline of those in it."""
        if remaining_s < WAY_S:
            self.factor = min(MOST_PRUDENCE, LATE_RISE * self.factor)
        else:
            self.factor = max(LEAST_PRUDENCE, TIMELY_FALL * self.factor)


def find_late(
    remaining_s: Sequence[float], rows: Sequence[int], run_s: Callable[[int], float]
) -> tuple[int, Sequence[int]]:
    """Which requests of a batch would be answered too late if it ran now.

    A batch that is too late for all of them is halved first, until it is not; who is late in it makes room for others.

    Args:
        remaining_s: Until each one's deadline, infinity without one.
        rows: Of each request.
        run_s: Seconds that a run of so many rows may take; 0 while that is not known.

    Returns:
        How many requests, from the first on, to run, and the indices of those among them that would be late.
    """
    count = len(rows)
    while True:
        end_s = run_s(sum(rows[:count]))
        late = [index for index in range(count) if remaining_s[index] < end_s]
        if len(late) < count or count == 1:
            return count, late
        count //= 2
