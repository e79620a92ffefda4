# SPDX-License-Identifier: Apache-2.0
"""What a report says, as plain values: nothing here is formatted, and nothing here is asked of a server."""

from __future__ import annotations

from dataclasses import dataclass

from dovetail.benchmark import BenchmarkRecord
from dovetail.gate import GateReport
from dovetail.offer import Objective
from dovetail.program.agreement import ExportFigures

BASELINE_RECIPE = "ort-fp32"
"""What others are compared with: ONNX Runtime in fp32, the recipe that every machine has."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a million inferences (rows) take.

    Attributes:
        core_hours: CPU time of all cores.
        price: That times the price of a core-hour; None if no price was given.
        basis: Where the time comes from: "CPU time", or "wall time x threads" where CPU time was not measured.
    """

    core_hours: float
    price: float | None
    basis: str


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement of one artifact with its settings.

    Attributes:
        record: The figures.
        cost: What a million rows take with these settings.
        on_front: True if no other run of this class is better in one respect without being worse in another.
    """

    record: BenchmarkRecord
    cost: Cost
    on_front: bool


@dataclass(frozen=True, slots=True)
class KeptLayer:
    """A layer that stayed in float, and why; "" if the reason is not recorded."""

    node: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One artifact on one hardware class.

    Attributes:
        artifact_key: Its key.
        recipe: Name of its recipe.
        engine: Its engine.
        precision: Of the heavy layers.
        size_bytes: Of the files that the engine loads.
        verified: "native", "emulated" or "no", for this class.
        calibration: How it was calibrated, or "uncalibrated"; "" if that does not apply.
        gate: Report of the accuracy gate.
        kept_layers: Layers that stayed in float.
        runs: Its measurements here, best latency first.
    """

    artifact_key: str
    recipe: str
    engine: str
    precision: str
    size_bytes: int
    verified: str
    calibration: str
    gate: GateReport
    kept_layers: tuple[KeptLayer, ...]
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Best:
    """What to use for an objective.

    Attributes:
        objective: What is optimised.
        entry: The artifact.
        run: Its measurement, with the settings to use.
        value: The figure that decided: ms, rows per second, or bytes.
        ratio: How many times better than ONNX Runtime fp32 on the same class; None if that was not measured.
        equals: Recipes that cannot be told from it, because the intervals overlap.
    """

    objective: Objective
    entry: Entry
    run: Run
    value: float
    ratio: float | None
    equals: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClassReport:
    """One hardware class: its artifacts, and the best of them for each objective."""

    key: str
    entries: tuple[Entry, ...]
    best: tuple[Best, ...]


@dataclass(frozen=True, slots=True)
class Rejected:
    """A build that did not become an artifact.

    Attributes:
        recipe: Name of its recipe.
        artifact_key: Key that it would have.
        hardware_class: Class it was for.
        phase: "failed" or "cancelled".
        code: What kind of failure: "gate_missed", "timeout" …
        message: Why, for people.
        reasons: Thresholds that the gate says were missed, each with both numbers.
        speedup: Over the unoptimised model, if it was measured before it was rejected; 0 if not.
    """

    recipe: str
    artifact_key: str
    hardware_class: str
    phase: str
    code: str
    message: str
    reasons: tuple[str, ...]
    speedup: float = 0.0


@dataclass(frozen=True, slots=True)
class ReportData:
    """A report.

    Attributes:
        model: Model name.
        version: Its version.
        model_digest: Digest of its normalised graph.
        made_at: When the report was made, for people.
        price_per_core_hour: As given; None if not.
        classes: Hardware classes with figures, the best measured first.
        rejected: What was tried and is not offered.
        unmeasured: Recipes of artifacts that have figures on no class.
        export_check: How far the graph is from the native module; None if that was not pushed.
    """

    model: str
    version: int
    model_digest: str
    made_at: str
    price_per_core_hour: float | None
    classes: tuple[ClassReport, ...]
    rejected: tuple[Rejected, ...]
    unmeasured: tuple[str, ...] = ()
    export_check: ExportFigures | None = None
