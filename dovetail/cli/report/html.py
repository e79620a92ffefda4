# SPDX-License-Identifier: Apache-2.0
"""A report as one self-contained HTML page. Every text is escaped here; nothing is loaded from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from dovetail.cli.output import rate_text, short_key, size_text, time_text
from dovetail.cli.report import words
from dovetail.cli.report.choice import best_run
from dovetail.cli.report.data import BASELINE_RECIPE, Best, ClassReport, Entry, Rejected, ReportData, Run
from dovetail.cli.report.plots import accuracy_plot, latency_plot, pareto_plot
from dovetail.cli.report.style import STYLE
from dovetail.cli.report.svg import swatch
from dovetail.offer import Objective

_PARETO_CAPTION = (
    "Every measured setting. Strong marks are on the Pareto front over p99 latency, throughput, memory and accuracy; "
    "the dashed line is the outline of what is shown."
)
_READING = (
    "Intervals are 95 % bootstrap intervals over fresh processes. Where they overlap nothing is ranked: such artifacts "
    "are called equal. Ratios compare with the artifact ort-fp32 (ONNX Runtime, fp32) on the same class, each with its "
    "own best settings. Figures of nodes replace those of the build for the same class and settings."
)
_VERIFIED = {"native": "native", "emulated": "emulated", "no": "not here"}


def html_report(data: ReportData) -> str:
    """The page."""
    title = f"{data.model} version {data.version}"
    header = (
        f"<header><h1>{escape(title)}</h1><p class='soft'>What was built, measured and rejected. "
        f"Model <code>{escape(short_key(data.model_digest))}</code>, written {escape(data.made_at)}.</p></header>"
    )
    body = [header]
    if data.export_check is not None:
        body.append(f"<p>Export: {escape(data.export_check.text)}.</p>")
    body += [_class_section(report, data.price_per_core_hour) for report in data.classes]
    if not data.classes:
        body.append("<p>Nothing was measured yet: no artifact has figures of any hardware class.</p>")
    if data.unmeasured:
        body.append(f"<p class='soft'>Without any figures: {escape(', '.join(data.unmeasured))}.</p>")
    body += [_rejected_section(data.rejected), _notes(data)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}: Dovetail report</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _class_section(report: ClassReport, price: float | None) -> str:
    accuracy = accuracy_plot(report)
    figures = [_figure(pareto_plot(report), _PARETO_CAPTION)]
    if accuracy:
        figures.append(_figure(accuracy, "Accuracy against latency, with the interval that the samples allow."))
    latency = _figure(
        latency_plot(report),
        "One request at a time. Mark: p50 with its 95 % interval; bars: to p90 and p95; line: to p99 (number).",
    )
    return "".join(
        (
            f"<section><h2>{escape(report.key)}</h2>",
            f"<div class='cards'>{''.join(_card(best) for best in report.best)}</div>",
            _legend(report.entries),
            f"<div class='figures'>{''.join(figures)}</div>",
            latency,
            "<h3>Artifacts</h3>",
            _artifact_table(report, price),
            _layers(report.entries),
            "<details><summary>All measurements</summary>",
            _run_table(report, price),
            "</details></section>",
        )
    )


def _card(best: Best) -> str:
    ratio = ""
    if best.ratio is not None and best.entry.recipe != BASELINE_RECIPE:
        less = "" if best.ratio > 1 else " less"
        ratio = f"<div class='ratio{less}'>{escape(words.ratio_text(best.ratio))} plain ONNX Runtime fp32</div>"
    elif best.ratio is not None:
        ratio = "<div class='ratio less'>plain ONNX Runtime fp32 itself</div>"
    equals = f"<div class='small soft'>equal within the intervals: {escape(', '.join(best.equals))}</div>"
    return (
        f"<div class='card'><h3>{escape(words.QUESTION[best.objective])}</h3>"
        f"<div class='value'>{escape(words.value_text(best))}</div>{ratio}"
        f"<div class='recipe'>{escape(best.entry.recipe)}</div>"
        f"<div class='small soft'>{escape(words.settings_text(best.run.record))}</div>"
        f"{equals if best.equals else ''}</div>"
    )


def _legend(entries: Sequence[Entry]) -> str:
    items = "".join(f"<li>{swatch(index)}{escape(entry.recipe)}</li>" for index, entry in enumerate(entries))
    return f"<ul class='legend'>{items}</ul>"


def _figure(picture: str, caption: str) -> str:
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def _artifact_table(report: ClassReport, price: float | None) -> str:
    heads = (
        "artifact",
        "verified",
        "accuracy",
        "p50 ms",
        "p99 ms",
        "rows/s",
        "vs fp32",
        "memory",
        "size",
        _cost_head(price),
    )
    baseline = next((entry for entry in report.entries if entry.recipe == BASELINE_RECIPE), None)
    rows = [_artifact_row(index, entry, baseline) for index, entry in enumerate(report.entries)]
    return _table(heads, rows, numeric=range(3, 10), broad=2)


def _artifact_row(index: int, entry: Entry, baseline: Entry | None) -> list[str]:
    latency = best_run(entry, Objective.LATENCY) or entry.runs[0]
    rate = best_run(entry, Objective.THROUGHPUT) or latency
    cheapest = min(entry.runs, key=lambda run: run.cost.core_hours)
    base = best_run(baseline, Objective.LATENCY) if baseline else None
    memory = max(run.record.peak_rss_bytes for run in entry.runs)
    record = latency.record
    interval = words.interval_text(record.p50_low_ms, record.p50_high_ms)
    rate_interval = words.rate_interval_text(rate.record.throughput_low, rate.record.throughput_high)
    return [
        f"{swatch(index)}{escape(entry.recipe)}{_soft(f'{entry.engine}, {entry.precision}', entry.calibration)}",
        f"<span class='badge {escape(entry.verified)}'>{escape(_VERIFIED.get(entry.verified, entry.verified))}</span>",
        f"{escape(words.accuracy_text(entry.gate))}{_soft(words.drop_text(entry.gate))}",
        f"{escape(time_text(record.p50_ms))}{_soft(interval, words.steady_text(record))}",
        escape(time_text(record.p99_ms)),
        f"{escape(rate_text(rate.record.throughput))}{_soft(rate_interval)}",
        escape(words.ratio_text(base.record.p50_ms / record.p50_ms if base else None)),
        escape(size_text(memory) if memory else "-"),
        escape(size_text(entry.size_bytes)),
        f"{escape(words.cost_text(cheapest.cost))}{_soft(cheapest.cost.basis)}",
    ]


def _run_table(report: ClassReport, price: float | None) -> str:
    heads = (
        "artifact", "scenario", "settings", "by", "p50", "p90", "p95", "p99 ms", "rows/s", "load ms", "CPU ms/row",
        _cost_head(price),
    )  # fmt: skip
    rows = [_run_row(index, entry, run) for index, entry in enumerate(report.entries) for run in entry.runs]
    return _table(heads, rows, numeric=range(4, 12))


def _run_row(index: int, entry: Entry, run: Run) -> list[str]:
    record = run.record
    rates = words.rate_interval_text(record.throughput_low, record.throughput_high)
    return [
        f"{swatch(index)}{escape(entry.recipe)}",
        escape(words.SCENARIO.get(record.scenario, record.scenario)),
        f"{escape(words.settings_text(record))}{_soft('on the Pareto front' if run.on_front else '')}",
        f"{escape(words.origin_text(record))}{_soft(words.steady_text(record))}",
        f"{escape(time_text(record.p50_ms))}{_soft(words.interval_text(record.p50_low_ms, record.p50_high_ms))}",
        escape(time_text(record.p90_ms)),
        escape(time_text(record.p95_ms)),
        escape(time_text(record.p99_ms)),
        f"{escape(rate_text(record.throughput))}{_soft(rates)}",
        escape(time_text(record.load_ms)),
        escape(time_text(record.cpu_ms)),
        f"{escape(words.cost_text(run.cost))}{_soft(run.cost.basis)}",
    ]


def _layers(entries: Sequence[Entry]) -> str:
    kept = [entry for entry in entries if entry.kept_layers]
    if not kept:
        return ""
    items = "".join(f"<li><b>{escape(entry.recipe)}</b>: {escape(words.layers_text(entry))}</li>" for entry in kept)
    return f"<details><summary>Layers that stayed in float</summary><ul>{items}</ul></details>"


def _rejected_section(rejected: Sequence[Rejected]) -> str:
    if not rejected:
        return "<section><h2>Rejected</h2><p>Nothing was rejected.</p></section>"
    rows = [
        [
            escape(item.recipe),
            f"<span class='badge bad'>{escape(item.code)}</span>",
            escape(words.rejected_text(item)),
            escape(words.ratio_text(item.speedup) if item.speedup else "-"),
            f"<code class='whole'>{escape(item.hardware_class or '-')}</code>",
        ]
        for item in rejected
    ]
    heads = ("recipe", "outcome", "why", "speed-up that it had", "class")
    return f"<section><h2>Rejected or not tried</h2>{_table(heads, rows, numeric=(3,), wide=2)}</section>"


def _notes(data: ReportData) -> str:
    price = (
        "no price was given" if data.price_per_core_hour is None else f"at {data.price_per_core_hour:g} per core-hour"
    )
    cost = (
        f"Cost is that of a million rows with the cheapest measured settings, {price}. It is CPU time where that was "
        "measured; else wall time times threads, which is an upper bound."
    )
    return f"<footer class='small soft'>{''.join(f'<p>{escape(line)}</p>' for line in (_READING, cost))}</footer>"


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, numeric: Iterable[int], wide: int = -1, broad: int = -1
) -> str:
    """A table; the cells are HTML already, the heads are not."""
    right = frozenset(numeric)
    style = dict.fromkeys(right, "n") | {0: "name"} | {wide: "why", broad: "wide"}
    head = "".join(f"<th{' class=n' if index in right else ''}>{escape(text)}</th>" for index, text in enumerate(heads))
    lines = (
        "".join(f"<td class='{style.get(index, '')}'>{cell}</td>" for index, cell in enumerate(row)) for row in rows
    )
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _soft(*texts: str) -> str:
    shown = ", ".join(text for text in texts if text)
    return f"<span class='soft'>{escape(shown)}</span>" if shown else ""


def _cost_head(price: float | None) -> str:
    return "core-hours per million" if price is None else "cost per million"
