# SPDX-License-Identifier: Apache-2.0
"""What a gate report says in one cell or one line: the metric, its drop with the bound, and what was not proven."""

from __future__ import annotations

from collections.abc import Mapping

from rich.text import Text

from dovetail.cli.output import percent_text
from dovetail.gate import GateReport

_WEAK_ORIGINS = ("synthetic", "calibration")


def verdict_cell(gate: GateReport | None) -> Text:
    """One of "pass" and "MISS"; "-" if there was no gate."""
    if gate is None:
        return Text("-")
    return Text("pass", style="green") if gate.passed else Text("MISS", style="red")


def metric_cell(value: float | None, gate: GateReport | None) -> Text:
    """The task metric as a percentage; its name before it if it is not the accuracy."""
    name = gate.metric if gate is not None and value is not None else ""
    return Text(f"{name} {percent_text(value)}" if name not in ("", "accuracy") else percent_text(value))


def drop_cell(gate: GateReport | None) -> Text:
    """Points that the metric fell by, with the upper end of the interval: "0.4 ≤1.9"; "0.4 ≤?" without an interval."""
    if gate is None or gate.metric_drop is None:
        return Text("-")
    high = "?" if gate.metric_drop_high is None else f"{100 * gate.metric_drop_high:.1f}"
    return Text(f"{100 * gate.metric_drop + 0.0:.1f} ≤{high}")


def remark(gate: GateReport | None, labels: Mapping[str, str]) -> str:
    """What a gate that passed has not proven, because it had no validation samples; "" if it had.

    Args:
        gate: The report.
        labels: The manifest's; "gate_inputs" says where the inputs were from.
    """
    if gate is None or not gate.passed:
        return ""
    noted = next((note for note in gate.notes if note.startswith("judged on ")), "")
    origin = labels.get("gate_inputs", "")
    return noted or (f"judged on {origin} only" if origin.startswith(_WEAK_ORIGINS) else "")
