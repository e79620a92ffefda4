# SPDX-License-Identifier: Apache-2.0
"""A report as a JSON document: keys may be added to, never renamed or removed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dovetail.cli.report.data import Best, Entry, ReportData

SCHEMA = 1


def report_document(data: ReportData) -> dict[str, Any]:
    """{schema, model, version, model_digest, made_at, price_per_core_hour, classes, rejected, unmeasured,
    export_check}.

    classes: list of {key, entries, best}; entries of {artifact_key, recipe, engine, precision, size_bytes, verified,
    calibration, gate, kept_layers, runs}, runs of {record, cost, on_front}; best of {objective, artifact_key, recipe,
    value, ratio_to_ort_fp32, equals, settings, record}.
    """
    return {
        "schema": SCHEMA,
        "model": data.model,
        "version": data.version,
        "model_digest": data.model_digest,
        "made_at": data.made_at,
        "price_per_core_hour": data.price_per_core_hour,
        "classes": [
            {
                "key": item.key,
                "entries": [_entry(entry) for entry in item.entries],
                "best": [_best(best) for best in item.best],
            }
            for item in data.classes
        ],
        "rejected": [asdict(item) for item in data.rejected],
        "unmeasured": list(data.unmeasured),
        "export_check": data.export_check.to_json() if data.export_check else None,
    }


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "artifact_key": entry.artifact_key,
        "recipe": entry.recipe,
        "engine": entry.engine,
        "precision": entry.precision,
        "size_bytes": entry.size_bytes,
        "verified": entry.verified,
        "calibration": entry.calibration,
        "gate": entry.gate.to_json(),
        "kept_layers": [asdict(layer) for layer in entry.kept_layers],
        "runs": [
            {"record": run.record.to_json(), "cost": asdict(run.cost), "on_front": run.on_front} for run in entry.runs
        ],
    }


def _best(best: Best) -> dict[str, Any]:
    record = best.run.record
    return {
        "objective": str(best.objective),
        "artifact_key": best.entry.artifact_key,
        "recipe": best.entry.recipe,
        "value": best.value,
        "ratio_to_ort_fp32": best.ratio,
        "equals": list(best.equals),
        "settings": {"threads": record.threads, "streams": record.streams, "batch": record.batch},
        "record": record.to_json(),
    }
