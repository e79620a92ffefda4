# SPDX-License-Identifier: Apache-2.0
"""A layer report as a PNG: signal-to-noise ratio along the graph. matplotlib is needed here only."""

from __future__ import annotations

from pathlib import Path

from dovetail.errors import InvalidInputError, UnsupportedError
from dovetail.layers import JUMP_DB, LayerReport, expected_db

_TOP_DB = 80.0  # identical tensors are drawn here: their 200 dB would press the rest together
_LABELS = 60  # more tensors than this get no names: they could not be read


def draw(report: LayerReport, path: Path, *, title: str) -> None:
    """Write the plot.

    Raises:
        UnsupportedError: matplotlib is not installed.
        InvalidInputError: There is nothing to draw, or the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise UnsupportedError("drawing needs matplotlib: pip install 'dovetail[report]'") from exc
    if not report.tensors:
        raise InvalidInputError(f"the layer report of {report.recipe} holds no tensors, so there is nothing to draw")
    figure = Figure(figsize=(min(24.0, 6 + 0.22 * len(report.tensors)), 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    heights = [max(-20.0, min(_TOP_DB, row.snr_db)) for row in report.tensors]
    places = range(len(heights))
    colours = ["tab:blue" if row.quantised else "tab:gray" for row in report.tensors]
    axes.plot(places, heights, color="lightgray", zorder=1)
    axes.scatter(places, heights, c=colours, zorder=2)
    ceiling = min(_TOP_DB, expected_db(report.precision))
    axes.axhline(ceiling - JUMP_DB, color="tab:orange", linestyle="--", label="a healthy tensor is above")
    axes.scatter([], [], c="tab:blue", label=report.precision)
    axes.scatter([], [], c="tab:gray", label="float")
    jump = report.first_jump()
    if jump is not None:
        place = next(index for index, row in enumerate(report.tensors) if row.tensor == jump.tensor)
        axes.annotate(f"jump: {jump.tensor}", (place, heights[place]), textcoords="offset points", xytext=(8, 12),
                      color="tab:red", arrowprops={"arrowstyle": "->", "color": "tab:red"})  # fmt: skip
    if len(heights) <= _LABELS:
        axes.set_xticks(list(places), [row.tensor[-32:] for row in report.tensors], rotation=90, fontsize=7)
    axes.set(title=title, ylabel="signal-to-noise ratio, dB", xlabel="tensors in graph order")
    axes.legend(loc="lower left")
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as exc:
        raise InvalidInputError(f"{path} cannot be written: {exc.strerror or exc}") from exc
