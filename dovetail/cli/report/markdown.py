# SPDX-License-Identifier: Apache-2.0
"""A report as Markdown (GitHub's tables): the same facts as the page, without pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from dovetail.cli.output import rate_text, short_key, size_text, time_text
from dovetail.cli.report import words
from dovetail.cli.report.data import ClassReport, ReportData

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#])")


def markdown_report(data: ReportData) -> str:
    """The document."""
    lines = [f"# {_text(data.model)} version {data.version}", ""]
    lines += [f"Model `{short_key(data.model_digest)}`, written {_text(data.made_at)}.", ""]
    if data.export_check is not None:
        lines += [f"Export: {_text(data.export_check.text)}.", ""]
    for report in data.classes:
        lines += _class_part(report, priced=data.price_per_core_hour is not None)
    if not data.classes:
        lines += ["Nothing was measured yet.", ""]
    if data.unmeasured:
        lines += [f"Without any figures: {_text(', '.join(data.unmeasured))}.", ""]
    lines += ["## Rejected", ""]
    rows = [
        [item.recipe, item.code, words.rejected_text(item), words.ratio_text(item.speedup or None), item.hardware_class]
        for item in data.rejected
    ]
    lines += _table(("recipe", "outcome", "why", "speed-up", "class"), rows) if rows else ["Nothing was rejected.", ""]
    if data.price_per_core_hour is not None:
        lines += [f"Cost: {data.price_per_core_hour:g} per core-hour, for a million rows.", ""]
    return "\n".join(lines).rstrip() + "\n"


def _class_part(report: ClassReport, *, priced: bool) -> list[str]:
    best = [
        [
            str(item.objective), item.entry.recipe, words.settings_text(item.run.record), words.value_text(item),
            words.ratio_text(item.ratio), ", ".join(item.equals) or "-",
        ]
        for item in report.best
    ]  # fmt: skip
    runs = [
        [
            entry.recipe, words.SCENARIO.get(run.record.scenario, run.record.scenario),
            words.settings_text(run.record), time_text(run.record.p50_ms),
            words.interval_text(run.record.p50_low_ms, run.record.p50_high_ms) or "-", time_text(run.record.p90_ms),
            time_text(run.record.p95_ms), time_text(run.record.p99_ms), rate_text(run.record.throughput),
            words.cost_text(run.cost), run.cost.basis, "yes" if run.on_front else "",
        ]
        for entry in report.entries for run in entry.runs
    ]  # fmt: skip
    facts = [
        [
            entry.recipe, entry.verified, words.accuracy_text(entry.gate), words.drop_text(entry.gate) or "-",
            words.snr_text(entry.gate), size_text(entry.size_bytes), entry.calibration or "-",
            words.layers_text(entry) or "-",
        ]
        for entry in report.entries
    ]  # fmt: skip
    cost = "cost per million" if priced else "per million"
    return [
        f"## {_text(report.key)}", "",
        "### Best", "",
        *_table(("objective", "artifact", "settings", "figure", "vs ONNX Runtime fp32", "equal to"), best),
        "### Artifacts", "",
        *_table(("artifact", "verified", "accuracy", "drop", "SNR", "size", "calibration", "layers in float"), facts),
        "### Measurements", "",
        *_table(
            ("artifact", "scenario", "settings", "p50 ms", "95 % interval", "p90", "p95", "p99", "rows/s", cost,
             "from", "Pareto"),
            runs,
        ),
    ]  # fmt: skip


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    return [*lines, *(f"| {' | '.join(_text(cell) for cell in row)} |" for row in rows), ""]


def _text(value: str) -> str:
    """Plain text: never markup, never a second line."""
    return _SPECIAL.sub(r"\\\1", " ".join(value.split()))
