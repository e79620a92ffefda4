# SPDX-License-Identifier: Apache-2.0
"""What a million inferences take, from a measurement. Pure."""

from __future__ import annotations

from dovetail.benchmark import BenchmarkRecord
from dovetail.cli.report.data import Cost

MILLION = 1_000_000
CPU_TIME = "CPU time"
WALL_TIME = "wall time x threads"


def cost_of(record: BenchmarkRecord, price_per_core_hour: float | None) -> Cost:
    """Core-hours of a million rows, and their price.

    CPU time counts every core that worked, and only while it worked. Where it was not measured the threads given to the
    engine are taken as busy all the time, which is an upper bound.
    """
    if record.cpu_ms > 0:
        seconds, basis = record.cpu_ms / 1000, CPU_TIME
    else:
        seconds = record.threads / record.throughput if record.throughput > 0 else 0.0
        basis = WALL_TIME
    core_hours = seconds * MILLION / 3600
    return Cost(core_hours, None if price_per_core_hour is None else core_hours * price_per_core_hour, basis)
