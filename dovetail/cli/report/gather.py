# SPDX-License-Identifier: Apache-2.0
"""From what the SDK returns to what a report says. Pure: whoever calls has asked the server already."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from dovetail.artifact import Manifest
from dovetail.benchmark import BenchmarkRecord
from dovetail.cli.report.choice import best_of
from dovetail.cli.report.cost import cost_of
from dovetail.cli.report.data import ClassReport, Entry, KeptLayer, Rejected, ReportData, Run
from dovetail.client import Artifact, Build, BuildPhase, Model
from dovetail.errors import NotFoundError
from dovetail.layers import LayerReport
from dovetail.pareto import Point, front


def report_data(
    model: Model,
    artifacts: Sequence[Artifact],
    builds: Iterable[Build],
    *,
    made_at: str,
    class_prefix: str = "",
    price_per_core_hour: float | None = None,
    layers: Mapping[str, LayerReport] | None = None,
) -> ReportData:
    """Everything that is known of one model version.

    Args:
        model: The version.
        artifacts: Its artifacts.
        builds: Its builds.
        made_at: When, for people.
        class_prefix: Only hardware classes whose key begins so.
        price_per_core_hour: In whatever currency.
        layers: Artifact key -> its layer report, where it has one.

    Raises:
        NotFoundError: No class with figures begins so.
    """
    known = {record.hardware_class for item in artifacts for record in item.benchmarks if _usable(record)}
    keys = sorted(key for key in known if key.startswith(class_prefix))
    if class_prefix and not keys:
        raise NotFoundError(
            f"nothing of {model.name} was measured on hardware class {class_prefix!r}; "
            f"there are figures of: {', '.join(sorted(known)) or 'none'}"
        )
    classes = [_class_report(key, artifacts, price_per_core_hour, layers or {}) for key in keys]
    measured = {item.manifest.artifact_key for item in artifacts if any(map(_usable, item.benchmarks))}
    return ReportData(
        model=model.name,
        version=model.version,
        model_digest=model.model_digest,
        made_at=made_at,
        price_per_core_hour=price_per_core_hour,
        classes=tuple(sorted(classes, key=lambda item: (-len(item.entries), item.key))),
        rejected=tuple(_rejected(build) for build in builds if _is_rejected(build)),
        unmeasured=tuple(
            sorted(item.manifest.recipe.name for item in artifacts if item.manifest.artifact_key not in measured)
        ),
        export_check=model.export_check,
    )


def _class_report(
    key: str, artifacts: Iterable[Artifact], price: float | None, layers: Mapping[str, LayerReport]
) -> ClassReport:
    found = [(item, [record for record in item.benchmarks if record.hardware_class == key]) for item in artifacts]
    measured = [(item, [record for record in records if _usable(record)]) for item, records in found]
    points = [
        Point.of(
            f"{item.manifest.artifact_key}/{index}",
            record,
            size_bytes=item.manifest.size_bytes,
            accuracy=item.manifest.gate.metric_candidate,
        )
        for item, records in measured
        if not item.manifest.contract.baseline
        for index, record in enumerate(records)
    ]
    on_front = {point.key for point in front(points)}
    entries = [
        _entry(item.manifest, key, records, price, on_front, layers.get(item.manifest.artifact_key))
        for item, records in measured
        if records
    ]
    ordered = tuple(sorted(entries, key=lambda entry: (entry.runs[0].record.p50_ms, entry.recipe)))
    baselines = {item.manifest.artifact_key for item, _ in measured if item.manifest.contract.baseline}
    return ClassReport(key, ordered, best_of([entry for entry in ordered if entry.artifact_key not in baselines]))


def _entry(
    manifest: Manifest,
    class_key: str,
    records: Sequence[BenchmarkRecord],
    price: float | None,
    on_front: frozenset[str] | set[str],
    layers: LayerReport | None,
) -> Entry:
    runs = [
        Run(record, cost_of(record, price), f"{manifest.artifact_key}/{index}" in on_front)
        for index, record in enumerate(records)
    ]
    return Entry(
        artifact_key=manifest.artifact_key,
        recipe=manifest.recipe.name,
        engine=manifest.recipe.engine,
        precision=manifest.recipe.precision,
        size_bytes=manifest.size_bytes,
        verified=_verified(manifest, class_key),
        calibration=manifest.labels.get("calibration", ""),
        gate=manifest.gate,
        kept_layers=_kept(manifest, layers),
        runs=tuple(sorted(runs, key=lambda run: run.record.p50_ms)),
    )


def _verified(manifest: Manifest, class_key: str) -> str:
    """How the gate ran, as far as it speaks for this class: the key of a class begins with its instruction set."""
    isa = manifest.verified_isa.replace("+", "-")
    return manifest.verified if not isa or class_key.startswith(f"{isa}-") else "no"


def _kept(manifest: Manifest, layers: LayerReport | None) -> tuple[KeptLayer, ...]:
    why = {layer.node: layer.kept for layer in layers.layers} if layers is not None else {}
    names = [*manifest.recipe.excluded_nodes, *(node for node, reason in why.items() if reason)]
    return tuple(KeptLayer(node, why.get(node, "")) for node in dict.fromkeys(names))


def _is_rejected(build: Build) -> bool:
    return build.phase in (BuildPhase.FAILED, BuildPhase.CANCELLED)


def _rejected(build: Build) -> Rejected:
    failure = build.failure
    return Rejected(
        recipe=build.recipe.name,
        artifact_key=build.artifact_key,
        hardware_class=build.hardware_class,
        phase=str(build.phase),
        code=failure.code if failure else str(build.phase),
        message=failure.message if failure else build.message,
        reasons=build.gate.failures if build.gate else (),
        speedup=build.benchmark.speedup if build.benchmark else 0.0,
    )


def _usable(record: BenchmarkRecord) -> bool:
    """Figures that mean something; what a node reports may be anything that is a number."""
    figures = (record.p50_ms, record.p99_ms, record.throughput)
    return all(math.isfinite(figure) and figure > 0 for figure in figures)
