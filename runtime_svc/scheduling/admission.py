# SPDX-License-Identifier: Apache-2.0
"""Refusing at once what could only be dropped later: requests that cannot be answered before their deadline.

The prediction is meant to be too good rather than too bad, because a refusal cannot be taken back: it counts only what
is queued before the request, at the best measured cost of a row, spread over all instances, and nothing for what runs
already. It refuses nothing until enough was measured, and nothing into an empty queue, so that a model that became
slow for a while is measured again.
"""

from __future__ import annotations

from collections.abc import Hashable

from dovetail.errors import DeadlineError
from runtime_svc.scheduling.run_times import RunTimes

ENOUGH_RUNS = 32
"""Runs of a layout before its times decide about anybody's request."""

OPTIMISM = 0.8
"""What is predicted is taken to be too long by a quarter."""


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
