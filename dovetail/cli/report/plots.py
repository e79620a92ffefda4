# SPDX-License-Identifier: Apache-2.0
"""The three plots of a hardware class: all runs with the Pareto front, accuracy against latency, latencies."""

from __future__ import annotations

from collections.abc import Sequence

from dovetail.cli.output import percent_text, rate_text, time_text
from dovetail.cli.report import svg
from dovetail.cli.report.choice import best_run
from dovetail.cli.report.data import ClassReport, Entry, Run
from dovetail.cli.report.scale import Scale, scale_for
from dovetail.cli.report.words import settings_text
from dovetail.offer import Objective

_LEFT, _RIGHT = svg.LEFT, svg.WIDTH - svg.RIGHT
_BOTTOM, _TOP = svg.HEIGHT - svg.BOTTOM, svg.TOP
_ROW = 30.0
_NAME_WIDTH = 190


def pareto_plot(report: ClassReport) -> str:
    """Every run: latency across, rows per second up; those that nothing beats in every respect are strong."""
    runs = [(index, entry, run) for index, entry in enumerate(report.entries) for run in entry.runs]
    across = scale_for([run.record.p50_ms for _, _, run in runs], _LEFT, _RIGHT)
    up = scale_for([run.record.throughput for _, _, run in runs], _BOTTOM, _TOP, from_zero=True)
    parts = [svg.axes(across, up, across_title="p50 latency, ms", up_title="rows per second", text=_plain)]
    parts.append(_front_line([run for _, _, run in runs], across, up))
    for index, _, run in runs:
        record, y = run.record, up.at(run.record.throughput)
        if 0 < record.p50_low_ms <= record.p50_high_ms:
            parts.append(svg.whisker(across.at(record.p50_low_ms), y, across.at(record.p50_high_ms), y, index))
    for index, entry, run in sorted(runs, key=lambda item: item[2].on_front):
        x, y = across.at(run.record.p50_ms), up.at(run.record.throughput)
        parts.append(svg.mark(x, y, index, _hint(entry, run), strong=run.on_front))
    return svg.frame(parts, title="Latency and throughput of every measured setting, with the Pareto front")


def accuracy_plot(report: ClassReport) -> str:
    """One mark for each artifact: latency across, accuracy (or signal-to-noise ratio) up; "" if nothing is known."""
    rows = [(index, entry, best_run(entry, Objective.LATENCY)) for index, entry in enumerate(report.entries)]
    metric = all(entry.gate.metric_candidate is not None for entry in report.entries)
    known = [(index, entry, run, _quality(entry, metric)) for index, entry, run in rows if run is not None]
    shown = [(index, entry, run, value) for index, entry, run, value in known if value is not None]
    if not shown:
        return ""
    across = scale_for([run.record.p50_ms for _, _, run, _ in shown], _LEFT, _RIGHT)
    ends = [end for _, entry, _, value in shown for end in _interval(entry, value, metric)]
    up = scale_for([value for _, _, _, value in shown] + ends, _BOTTOM, _TOP)
    title = shown[0][1].gate.metric if metric else "worst SNR of the outputs, dB"
    parts = [
        svg.axes(
            across,
            up,
            across_title="p50 latency, ms",
            up_title=title,
            text=percent_text if metric and title.lower() == "accuracy" else _plain,
        )
    ]
    for index, entry, run, value in shown:
        x, (low, high) = across.at(run.record.p50_ms), _interval(entry, value, metric)
        hint = f"{entry.recipe}: {value:.4g} at {time_text(run.record.p50_ms)} ms"
        parts.append(svg.whisker(x, up.at(low), x, up.at(high), index))
        parts.append(svg.mark(x, up.at(value), index, hint))
    return svg.frame(parts, title="Accuracy of each artifact against its latency")


def latency_plot(report: ClassReport) -> str:
    """One line for each artifact: p50 with its interval, p90 and p95, and how far p99 is out."""
    rows = [(index, entry, best_run(entry, Objective.LATENCY)) for index, entry in enumerate(report.entries)]
    known = [(index, entry, run) for index, entry, run in rows if run is not None]
    height = svg.TOP + _ROW * len(known) + svg.BOTTOM
    bottom = height - svg.BOTTOM
    width = svg.WIDTH * 2.0
    across = scale_for([value for _, _, run in known for value in _percentiles(run)], _NAME_WIDTH, width - 70)
    parts = []
    for value in across.ticks(8):
        x = across.at(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{svg.TOP}" y2="{bottom:.1f}"/>')
        parts.append(svg.label(x, bottom + 18, f"{value:g}", anchor="middle", style="tick"))
    parts.append(svg.label((_NAME_WIDTH + width) / 2, bottom + 40, "latency, ms", anchor="middle", style="axis"))
    for place, (index, entry, run) in enumerate(known):
        parts.append(_latency_row(across, svg.TOP + _ROW * (place + 0.5), index, entry, run))
    return svg.frame(parts, title="Latency distribution of each artifact", height=height, width=width)


def _latency_row(across: Scale, y: float, index: int, entry: Entry, run: Run) -> str:
    record = run.record
    p50, p90, p95, p99 = (across.at(value) for value in (record.p50_ms, *_tail(run)))
    p50_text, p95_text, p99_text = (time_text(value) for value in (record.p50_ms, record.p95_ms, record.p99_ms))
    hint = f"{entry.recipe}: p50 {p50_text}, p95 {p95_text}, p99 {p99_text} ms"
    parts = [
        svg.label(_NAME_WIDTH - 12, y + 4, entry.recipe, anchor="end"),
        svg.whisker(p50, y, p99, y, index),
        svg.band(p50, p95, y - 4, 8, index, style="bar pale", hint=hint),
        svg.band(p50, p90, y - 4, 8, index, style="bar", hint=hint),
    ]
    if 0 < record.p50_low_ms <= record.p50_high_ms:
        low, high = across.at(record.p50_low_ms), across.at(record.p50_high_ms)
        parts.append(svg.band(low, high, y - 9, 18, index, style="bar interval", hint="95 % interval of p50"))
    parts.append(svg.mark(p50, y, index, hint))
    parts.append(svg.label(p99 + 8, y + 4, time_text(record.p99_ms), style="tick"))
    return "".join(parts)


def _front_line(runs: Sequence[Run], across: Scale, up: Scale) -> str:
    """The outline of what cannot be beaten in the two respects that the plot shows."""
    best, places = 0.0, []
    for run in sorted(runs, key=lambda item: (item.record.p50_ms, -item.record.throughput)):
        if run.record.throughput > best:
            best = run.record.throughput
            places.append(f"{across.at(run.record.p50_ms):.1f},{up.at(best):.1f}")
    return f'<polyline class="front" points="{" ".join(places)}"/>' if len(places) > 1 else ""


def _plain(value: float) -> str:
    return f"{value:g}"


def _hint(entry: Entry, run: Run) -> str:
    record = run.record
    front = ", on the Pareto front" if run.on_front else ""
    return (
        f"{entry.recipe}, {settings_text(record)}: p50 {time_text(record.p50_ms)} ms, "
        f"{rate_text(record.throughput)} rows/s{front}"
    )


def _quality(entry: Entry, metric: bool) -> float | None:
    if metric:
        return entry.gate.metric_candidate
    return min((output.snr_db for output in entry.gate.outputs), default=None)


def _interval(entry: Entry, value: float, metric: bool) -> tuple[float, float]:
    """What the interval of the drop says of the metric itself; the value twice if there is none."""
    gate = entry.gate
    if not metric or gate.metric_reference is None or gate.metric_drop_low is None or gate.metric_drop_high is None:
        return value, value
    high = gate.metric_reference - gate.metric_drop_low
    return gate.metric_reference - gate.metric_drop_high, max(min(high, 1.0), value)  # no metric is better than 1


def _tail(run: Run) -> tuple[float, float, float]:
    record = run.record
    p95 = max(record.p95_ms, record.p50_ms)
    return record.p90_ms or (record.p50_ms + p95) / 2, p95, max(record.p99_ms, p95)


def _percentiles(run: Run) -> tuple[float, ...]:
    record = run.record
    return (record.p50_ms, max(record.p99_ms, record.p50_ms), record.p50_low_ms or record.p50_ms)
