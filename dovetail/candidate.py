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
        fit_key: Equal for candidates with equal contracts, the memory apart, and equal flaws.
        fit_key_elsewhere: The same with the flaws elsewhere.
        flaws: Reasons that hold on every machine of the class it was verified on: gate not passed, not natively.
        flaws_elsewhere: Reasons that hold on all other machines, where its gate proves nothing.
        size_bytes: Of the files that the engine loads.
        min_memory_bytes: As in the contract.
        accuracy: Task metric measured by the gate, a fraction; None without labels.
        tail: Last part of its place on that class: how it was verified, size, key.
        tail_elsewhere: The same on all other machines.
        latency_figures: Hardware class -> its record of the smallest batch.
        throughput_figures: Hardware class -> its record of the highest throughput.
    """

    manifest: Manifest
    benchmarks: Sequence[BenchmarkRecord] = ()
    fit_key: str = field(init=False, repr=False)
    fit_key_elsewhere: str = field(init=False, repr=False)
    flaws: tuple[Reason, ...] = field(init=False)
    flaws_elsewhere: tuple[Reason, ...] = field(init=False, repr=False)
    size_bytes: int = field(init=False)
    min_memory_bytes: int = field(init=False)
    accuracy: float | None = field(init=False)
    tail: tuple[int, int, str] = field(init=False, repr=False)
    tail_elsewhere: tuple[int, int, str] = field(init=False, repr=False)
    latency_figures: Mapping[str, BenchmarkRecord] = field(init=False, repr=False)
    throughput_figures: Mapping[str, BenchmarkRecord] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        manifest = self.manifest
        records = [item for item in (*manifest.benchmarks, *self.benchmarks) if _usable(item)]
        size_bytes = manifest.size_bytes
        flaws, flaws_elsewhere = _flaws(manifest, manifest.verified), _flaws(manifest, "no")
        computed = {
            "fit_key": _fit_key(manifest.contract, flaws),
            "fit_key_elsewhere": _fit_key(manifest.contract, flaws_elsewhere),
            "flaws": flaws,
            "flaws_elsewhere": flaws_elsewhere,
            "size_bytes": size_bytes,
            "min_memory_bytes": manifest.contract.min_memory_bytes,
            "accuracy": manifest.gate.metric_candidate,
            "tail": (_VERIFIED_ORDER.get(manifest.verified, 2), size_bytes, manifest.artifact_key),
            "tail_elsewhere": (_VERIFIED_ORDER["no"], size_bytes, manifest.artifact_key),
            "latency_figures": _best_of_each_class(records, Objective.LATENCY),
            "throughput_figures": _best_of_each_class(records, Objective.THROUGHPUT),
        }
        for name, value in computed.items():
            object.__setattr__(self, name, value)

    def at_home_on(self, isa_class: str) -> bool:
        """True if how it was verified holds on machines of that class: `flaws`, `fit_key` and `tail` do, then."""
        return self.manifest.verified_isa in ("", isa_class)


def _flaws(manifest: Manifest, verified: str) -> tuple[Reason, ...]:
    """Reasons that hold on every machine for which it counts as verified like that."""
    found: list[Reason] = []
    if not manifest.gate.passed:
        has = "; ".join(manifest.gate.failures[:2]) or "one that failed"
        found.append(Reason("gate", Verdict.UNSUPPORTED, "a passed accuracy gate", has, "build it again"))
    if verified != "native":
        found.append(_unproven(manifest, verified))
    return tuple(found)


def _unproven(manifest: Manifest, verified: str) -> Reason:
    """Why the gate says less than one that ran on this machine's own kind of CPU.

    fp32 is treated like int8: its results differ in the last bits only, but that is what the gate would have shown.
    """
    if verified == "emulated":
        has, way_out = "one that ran under emulation", "a worker of this class would verify it natively"
    else:
        has = f"one that ran on {manifest.verified_isa}" if manifest.verified_isa else "none yet"
        way_out = "a worker of this class, or one that emulates it, would verify it"
    way_out = f"its goldens are replayed here before it serves; {way_out}"
    return Reason("verified", Verdict.SUBOPTIMAL, "a gate that ran on this class of CPU", has, way_out)


def _fit_key(contract: Contract, flaws: tuple[Reason, ...]) -> str:
    document = {**contract.to_json(), "min_memory_bytes": 0}
    return sys.intern(canonical_json(document).decode() + repr(flaws))


def _usable(record: BenchmarkRecord) -> bool:
    figures = (record.p50_ms, record.p99_ms, record.throughput)
    return all(math.isfinite(figure) and figure > 0 for figure in figures) and math.isfinite(record.baseline_p50_ms)


def _best_of_each_class(records: Iterable[BenchmarkRecord], objective: Objective) -> Mapping[str, BenchmarkRecord]:
    """Class key -> the record that counts: steady, then of the best settings for the objective.

    For latency those are one request at a time, the smallest batch, then the least median; for throughput the highest.
    Of several records of the same settings the newest counts.
    """

    def merit(record: BenchmarkRecord) -> tuple[float, ...]:
        alone = record.streams == 1 and record.scenario == "single_stream"
        first = (record.throughput,) if objective is Objective.THROUGHPUT else (alone, -record.batch)
        return (record.steady, *first, -record.p50_ms, -record.p99_ms, record.measured_at_ms, record.peak_rss_bytes)

    best: dict[str, BenchmarkRecord] = {}
    for record in _newest(records):
        known = best.get(record.hardware_class)
        if known is None or merit(record) > merit(known):
            best[record.hardware_class] = record
    return best


def _newest(records: Iterable[BenchmarkRecord]) -> Iterable[BenchmarkRecord]:
    """One record for each class and settings; steady ones apart, so that a disturbed look hides none."""

    def age(record: BenchmarkRecord) -> tuple[float, ...]:
        return (record.measured_at_ms, -record.p50_ms, -record.p99_ms, record.throughput, record.peak_rss_bytes)

    newest: dict[tuple[object, ...], BenchmarkRecord] = {}
    for record in records:
        key = (record.steady, *record.settings_key)
        known = newest.get(key)
        if known is None or age(record) > age(known):
            newest[key] = record
    return newest.values()
