# SPDX-License-Identifier: Apache-2.0
"""How figures and facts read in a report, the same in HTML and Markdown: plain text, escaped by whoever writes it."""

from __future__ import annotations

from dovetail.benchmark import BenchmarkRecord
from dovetail.cli.output import percent_text, rate_text, size_text, time_text
from dovetail.cli.report.data import Best, Cost, Entry, Rejected
from dovetail.gate import GateReport
from dovetail.offer import Objective

SCENARIO = {
    "single_stream": "single stream",
    "multi_stream": "multi stream",
    "server": "server",
    "offline": "offline",
}
QUESTION = {
    Objective.LATENCY: "Lowest latency",
    Objective.THROUGHPUT: "Highest throughput",
    Objective.MEMORY: "Least memory",
    Objective.SIZE: "Smallest files",
}


def settings_text(record: BenchmarkRecord) -> str:
    """Threads, streams and batch, with their nouns."""
    return f"{_count(record.threads, 'thread')}, {_count(record.streams, 'stream')}, batch {record.batch}"


def value_text(best: Best) -> str:
    """The figure that decided, with its unit."""
    if best.objective is Objective.LATENCY:
        return f"{time_text(best.value)} ms"
    if best.objective is Objective.THROUGHPUT:
        return f"{rate_text(best.value)} rows/s"
    return size_text(round(best.value))


def ratio_text(ratio: float | None) -> str:
    """How many times better; "-" if it is unknown."""
    return "-" if ratio is None else f"{ratio:.2f}x"


def interval_text(low: float, high: float) -> str:
    """A 95 % interval of milliseconds; "" if it is unknown."""
    return f"{time_text(low)}-{time_text(high)}" if 0 < low <= high else ""


def rate_interval_text(low: float, high: float) -> str:
    """The same for rows per second."""
    return f"{rate_text(low)}-{rate_text(high)}" if 0 < low <= high else ""


def cost_text(cost: Cost) -> str:
    """Core-hours of a million rows, or their price."""
    if cost.price is not None:
        return f"{cost.price:.3g}"
    return f"{cost.core_hours:.3g} core-h"


def accuracy_text(gate: GateReport) -> str:
    """The task metric, else how close the outputs are."""
    if gate.metric and gate.metric_candidate is not None:
        return f"{gate.metric} {percent_text(gate.metric_candidate)}"
    if gate.top1_agreement is not None:
        return f"top-1 same {percent_text(gate.top1_agreement)}"
    if gate.outputs:
        return f"cosine {min(output.cosine for output in gate.outputs):.5f}"
    return "-"


def drop_text(gate: GateReport) -> str:
    """What may be said of the loss: the gate's own claim where it makes one, with the interval."""
    if gate.claim:
        return gate.claim
    if gate.metric_reference is None or gate.metric_candidate is None:
        return ""
    drop = gate.metric_reference - gate.metric_candidate
    low, high = gate.metric_drop_low, gate.metric_drop_high
    interval = f" ({percent_text(low)} to {percent_text(high)})" if low is not None and high is not None else ""
    return f"drop {percent_text(drop)}{interval} on {gate.samples} samples"


def snr_text(gate: GateReport) -> str:
    """Worst signal-to-noise ratio of the outputs."""
    return f"{min(output.snr_db for output in gate.outputs):.1f} dB" if gate.outputs else "-"


def layers_text(entry: Entry) -> str:
    """Which layers stayed in float."""
    if not entry.kept_layers:
        return ""
    return "; ".join(f"{layer.node} ({layer.why})" if layer.why else layer.node for layer in entry.kept_layers)


def rejected_text(item: Rejected) -> str:
    """Why a build was rejected, all reasons."""
    reasons = [reason for reason in item.reasons if reason not in item.message]
    return "; ".join([item.message, *reasons]).strip("; ") or "no reason was recorded"


def origin_text(record: BenchmarkRecord) -> str:
    """Who measured."""
    return "build" if record.reported_by == "build" else f"node {record.reported_by}"


def steady_text(record: BenchmarkRecord) -> str:
    """A word of caution, if there is reason for one."""
    return "" if record.steady else "not steady"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
