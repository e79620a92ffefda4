# SPDX-License-Identifier: Apache-2.0
"""An artifact as negotiation sees it: its manifest with everything computed once that does not depend on the machine.

Apart from `dovetail.negotiation`, which exports it, because it is what a service keeps between negotiations.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dovetail.artifact import Manifest
from dovetail.benchmark import BenchmarkRecord
from dovetail.contract import Contract
from dovetail.digest import canonical_json
from dovetail.offer import Objective
from dovetail.rules.base import Reason, Verdict

_VERIFIED_ORDER = {"native": 0, "emulated": 1, "no": 2}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A manifest and its figures, prepared for negotiation. Make it once for each manifest and keep it.

    Attributes:
        manifest: The artifact.
        benchmarks: Figures from nodes; those in the manifest are added. Of any class; records that make no sense
            (zero, negative, not finite) are left out.
        contract_key: Equal for equal contracts, the memory apart.
        flaws: Reasons that hold on every machine: gate not passed, not verified natively.
        size_bytes: Of the files that the engine loads.
        min_memory_bytes: As in the contract.
        accuracy: Task metric measured by the gate, a fraction; None without labels.
        tail: Last part of its place: how it was verified, size, key.
        latency_figures: Hardware class -> its record of the smallest batch.
        throughput_figures: Hardware class -> its record of the highest throughput.
    """

    manifest: Manifest
    benchmarks: Sequence[BenchmarkRecord] = ()
    contract_key: str = field(init=False)
    flaws: tuple[Reason, ...] = field(init=False)
    size_bytes: int = field(init=False)
    min_memory_bytes: int = field(init=False)
    accuracy: float | None = field(init=False)
    tail: tuple[int, int, str] = field(init=False, repr=False)
    latency_figures: Mapping[str, BenchmarkRecord] = field(init=False, repr=False)
    throughput_figures: Mapping[str, BenchmarkRecord] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        manifest = self.manifest
        records = [item for item in (*manifest.benchmarks, *self.benchmarks) if _usable(item)]
        size_bytes = manifest.size_bytes
        computed = {
            "contract_key": _contract_key(manifest.contract),
            "flaws": _flaws(manifest),
            "size_bytes": size_bytes,
            "min_memory_bytes": manifest.contract.min_memory_bytes,
            "accuracy": manifest.gate.metric_candidate,
            "tail": (_VERIFIED_ORDER.get(manifest.verified, 2), size_bytes, manifest.artifact_key),
            "latency_figures": _best_of_each_class(records, Objective.LATENCY),
            "throughput_figures": _best_of_each_class(records, Objective.THROUGHPUT),
        }
        for name, value in computed.items():
            object.__setattr__(self, name, value)


def _flaws(manifest: Manifest) -> tuple[Reason, ...]:
    """Reasons that hold on every machine."""
    found: list[Reason] = []
    if not manifest.gate.passed:
        has = "; ".join(manifest.gate.failures[:2]) or "one that failed"
        found.append(Reason("gate", Verdict.UNSUPPORTED, "a passed accuracy gate", has, "build it again"))
    if manifest.verified != "native":
        has = "one that ran under emulation" if manifest.verified == "emulated" else "none yet"
        way_out = "its goldens decide when it is loaded; a worker of this class would verify it"
        found.append(Reason("verified", Verdict.SUBOPTIMAL, "a gate that ran on its own class", has, way_out))
    return tuple(found)


def _contract_key(contract: Contract) -> str:
    document = {**contract.to_json(), "min_memory_bytes": 0}
    return sys.intern(canonical_json(document).decode())


def _usable(record: BenchmarkRecord) -> bool:
    figures = (record.p50_ms, record.p99_ms, record.throughput)
    return all(math.isfinite(figure) and figure > 0 for figure in figures) and math.isfinite(record.baseline_p50_ms)


def _best_of_each_class(records: Iterable[BenchmarkRecord], objective: Objective) -> Mapping[str, BenchmarkRecord]:
    """Class key -> the record that counts: steady, then of the smallest batch or highest throughput, then newest."""

    def merit(record: BenchmarkRecord) -> tuple[float, ...]:
        first = record.throughput if objective is Objective.THROUGHPUT else -record.batch
        return (record.steady, first, record.measured_at_ms, -record.p50_ms, -record.p99_ms, record.peak_rss_bytes)

    best: dict[str, BenchmarkRecord] = {}
    for record in records:
        known = best.get(record.hardware_class)
        if known is None or merit(record) > merit(known):
            best[record.hardware_class] = record
    return best
