# SPDX-License-Identifier: Apache-2.0
"""Measured speed of an artifact on one hardware class, as a value.

The measuring itself is `dovetail.engines.measure` (it needs an engine). Figures always come with the baseline that
was measured in the same run, because absolute numbers of two runs cannot be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dovetail.errors import InvalidInputError

SCENARIOS = ("single_stream", "multi_stream", "server", "offline")
"""Request patterns. Source: MLPerf Inference, LoadGen's scenarios."""

_TEXTS = ("hardware_class", "reported_by", "scenario")


@dataclass(frozen=True, slots=True)
class BenchmarkRecord:
    """Figures of one artifact on one hardware class.

    Attributes:
        hardware_class: Key of the class that was measured.
        batch: Rows per inference.
        threads: Threads given to the engine.
        samples: Timed inferences.
        windows: Measurement windows after steady state.
        steady: True if the last windows lay within the stability bound; False means "take with care".
        p50_ms: Median latency.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        throughput: Rows per second, one caller.
        load_ms: Time from file to ready session, warm page cache.
        peak_rss_bytes: Peak resident memory of the measuring process above its state before load; 0 if unknown.
        baseline_p50_ms: Median of the unoptimised fp32 model in the same run; 0 if there was none.
        measured_at_ms: Wall clock, for people.
        reported_by: "build" or the node id.
        scenario: How requests came, one of SCENARIOS.
        streams: Requests that the engine was given at once.
        processes: Fresh processes that were measured; 0 if it was a process that did other things before.
        p50_low_ms: Lower end of the 95 % bootstrap interval of the median over processes; 0 if unknown, as the others.
        p50_high_ms: Upper end.
        throughput_low: Lower end of that of the throughput.
        throughput_high: Upper end.
        p90_ms: 90th percentile; 0 if unknown.
        cpu_ms: CPU time of all threads for one row; 0 if unknown.
    """

    hardware_class: str
    batch: int
    threads: int
    samples: int
    windows: int
    steady: bool
    p50_ms: float
    p95_ms: float
    p99_ms: float
    throughput: float
    load_ms: float
    peak_rss_bytes: int = 0
    baseline_p50_ms: float = 0.0
    measured_at_ms: int = 0
    reported_by: str = "build"
    scenario: str = "single_stream"
    streams: int = 1
    processes: int = 0
    p50_low_ms: float = 0.0
    p50_high_ms: float = 0.0
    throughput_low: float = 0.0
    throughput_high: float = 0.0
    p90_ms: float = 0.0
    cpu_ms: float = 0.0

    @property
    def settings_key(self) -> tuple[str, str, int, int, int]:
        """Class, scenario and settings: of two records with equal keys the newer one replaces the older."""
        return (self.hardware_class, self.scenario, self.batch, self.threads, self.streams)

    @property
    def speedup(self) -> float:
        """Baseline median over this median; 0 without a baseline."""
        return self.baseline_p50_ms / self.p50_ms if self.p50_ms > 0 and self.baseline_p50_ms > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """JSON form; `BenchmarkRecord.from_json(b.to_json()) == b`."""
        return asdict(self)

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> BenchmarkRecord:
        """Read the JSON form.

        Raises:
            InvalidInputError: A field is missing, unknown, or of the wrong type.
        """
        try:
            record = BenchmarkRecord(**document)
        except TypeError as exc:
            raise InvalidInputError(f"benchmark record is not readable: {exc}") from exc
        for name, value in asdict(record).items():
            if not isinstance(value, str if name in _TEXTS else int | float):
                raise InvalidInputError(f"benchmark record is not readable: {name} is {str(value)[:60]!r}")
        return record
