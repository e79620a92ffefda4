# SPDX-License-Identifier: Apache-2.0
"""Makes one record of the records that fresh processes gave: medians of their figures, with intervals. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

from dovetail.benchmark import BenchmarkRecord
from dovetail.bootstrap import median_interval
from dovetail.errors import InvalidInputError


def merged(records: Sequence[BenchmarkRecord]) -> BenchmarkRecord:
    """The record of some processes that measured the same settings.

    Each figure is the median of the processes' figures; the intervals are those of the median p50 and throughput. It is
    steady if most processes were.

    Raises:
        InvalidInputError: There is no record, or they are of different settings.
    """
    if not records or len({record.settings_key for record in records}) != 1:
        raise InvalidInputError("only records of the same class, scenario and settings make one, and at least one")

    def median(figure: Callable[[BenchmarkRecord], float]) -> float:
        return float(statistics.median(figure(record) for record in records))

    p50 = median_interval([record.p50_ms for record in records])
    throughput = median_interval([record.throughput for record in records])
    return replace(
        records[-1],
        samples=sum(record.samples for record in records),
        windows=sum(record.windows for record in records),
        steady=2 * sum(record.steady for record in records) > len(records),
        p50_ms=p50.median,
        p50_low_ms=p50.low,
        p50_high_ms=p50.high,
        p90_ms=median(lambda record: record.p90_ms),
        p95_ms=median(lambda record: record.p95_ms),
        p99_ms=median(lambda record: record.p99_ms),
        throughput=throughput.median,
        throughput_low=throughput.low,
        throughput_high=throughput.high,
        load_ms=median(lambda record: record.load_ms),
        peak_rss_bytes=int(median(lambda record: record.peak_rss_bytes)),
        baseline_p50_ms=median(lambda record: record.baseline_p50_ms),
        cpu_ms=median(lambda record: record.cpu_ms),
        processes=len(records),
    )
