# SPDX-License-Identifier: Apache-2.0
"""A layer report on a terminal: the tensor where the error jumps, the table by layer, what stayed in float and why."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dovetail.layers import LIMIT_DB, LayerReport, TensorError, expected_db

_RANKED = {
    "alone": "signal-to-noise ratio of the model's output with that layer alone quantised",
    "tensor": "error of the layer's own tensor in the artifact",
}


def layer_view(report: LayerReport) -> RenderableType:
    """All of it, ready to print."""
    parts: list[RenderableType] = [_headline(report)]
    if report.tensors:
        parts.append(_tensors(report))
    if any(layer.kept or layer.snr_db is not None for layer in report.layers):
        parts.append(_layers(report))
    parts += [Text(f"tried: {line}", style="dim") for line in report.tries]
    parts += [Text(f"note: {line}", style="dim") for line in report.notes]
    return Group(*parts)


def db_text(value: float | None) -> str:
    """Decibels with one digit; "exact" for identical tensors, "broken" for values that cannot be compared."""
    if value is None:
        return "-"
    return "exact" if value >= LIMIT_DB else "broken" if value <= -LIMIT_DB else f"{value:.1f}"


def _headline(report: LayerReport) -> Text:
    jump = report.first_jump()
    if not report.tensors:
        return Text(f"{report.recipe}: no tensor could be compared", style="yellow")
    if jump is None:
        return Text(f"{report.recipe}: the error jumps nowhere ({report.samples} samples)", style="green")
    return Text.assemble(
        (f"{report.recipe}: the error jumps at ", "bold"),
        (jump.tensor, "bold red"),
        (f" (node {jump.node}): {db_text(jump.snr_db)} dB after {db_text(jump.before_db)} dB", "bold"),
    )


def _tensors(report: LayerReport) -> Table:
    table = Table(box=None, header_style="bold", title=f"Tensors, {report.samples} samples", title_justify="left")
    for name in ("tensor", "node", "operator"):
        table.add_column(name, overflow="fold")
    for name in ("SNR dB", "cosine", "max error", "weights"):
        table.add_column(name, justify="right")
    table.add_column("computed in", overflow="fold")
    jump = report.first_jump()
    for row in report.tensors:
        style = "red" if jump is not None and row.tensor == jump.tensor else _style(row, report.precision)
        where = report.precision if row.quantised else f"float: {row.why}"
        table.add_row(
            Text(row.tensor), Text(row.node), row.op_type, Text(db_text(row.snr_db), style=style), f"{row.cosine:.4f}",
            f"{row.max_error:.2%}", f"{row.weight_share:.1%}", Text(where),
        )  # fmt: skip
    return table


def _style(row: TensorError, precision: str) -> str:
    return "yellow" if row.snr_db < expected_db(precision) - 10 else ""


def _layers(report: LayerReport) -> Table:
    ranked = _RANKED.get(report.ranked_by, "not ranked")
    table = Table(box=None, header_style="bold", title=f"Layers, by {ranked}", title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("SNR dB", justify="right")
    table.add_column("")
    for layer in report.layers:
        kept = Text(f"in float: {layer.kept}", style="cyan") if layer.kept else Text("quantised")
        table.add_row(Text(layer.node), db_text(layer.snr_db), kept)
    return table
