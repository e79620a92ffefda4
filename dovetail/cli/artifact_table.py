# SPDX-License-Identifier: Apache-2.0
"""The table of artifacts: every recipe with its figures, and for what was rejected the reason right under it.

One table serves `artifacts`, the end of `compile` and the demo. It fits its columns to the width that there is: at 80
columns the essential ones, at 120 and 160 all. A reason gets the whole width below its row, because a narrow column
would break it into a tower of words. What a gate without validation samples has not proven stands there, too. Recipes
that were never built have nothing to compare: they are named below the table, one line for each reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from dovetail.benchmark import BenchmarkRecord
from dovetail.cli.gate_view import drop_cell, metric_cell, remark, verdict_cell
from dovetail.cli.output import percent_text, rate_text, short_key, size_text, time_text, verdict_text
from dovetail.client import Artifact, AssessedArtifact, Build, BuildPhase, Offer
from dovetail.gate import GateReport
from dovetail.recipe import Recipe
from dovetail.rules import Verdict


@dataclass(frozen=True, slots=True)
class ArtifactRow:
    """One line of the table.

    Attributes:
        recipe: How it is built.
        artifact_key: Its key; "" if none exists.
        size_bytes: Size of what the engine loads; 0 if not built.
        accuracy: Task metric as a fraction; None if unknown.
        gate: Report of the gate, if it ran.
        benchmark: Figures, if measured.
        verdict: How it fits the machine in question; None if nobody asked.
        rank: 1 is the choice; 0: not offered.
        rejected: True if the build failed or the artifact is not offered: shown dim with its reason.
        untried: True if its build was cancelled before it came to anything: named below the table.
        reason: Why, one line or several.
    """

    recipe: Recipe
    artifact_key: str = ""
    size_bytes: int = 0
    accuracy: float | None = None
    gate: GateReport | None = None
    benchmark: BenchmarkRecord | None = None
    verdict: Verdict | None = None
    rank: int = 0
    rejected: bool = False
    untried: bool = False
    reason: str = ""


def rows_of(
    *,
    builds: Iterable[Build] = (),
    artifacts: Iterable[Artifact] = (),
    offer: Offer | None = None,
    accuracy: Mapping[str, float] | None = None,
) -> tuple[ArtifactRow, ...]:
    """Rows from what is known: offered ones first in rank order, then the rest by latency, rejected ones last.

    Args:
        builds: Builds, failed ones included; their figures are used where nothing better is known.
        artifacts: Published artifacts.
        offer: A negotiation: verdicts, ranks, and figures of the asking machine's class.
        accuracy: Artifact key -> accuracy to show instead of the gate's (held-out samples, say).
    """
    rows: dict[str, ArtifactRow] = {}
    for build in builds:
        rows[build.artifact_key or f"{build.recipe.name}@{build.hardware_class}"] = _row_of_build(build)
    for artifact in artifacts:
        rows[artifact.manifest.artifact_key] = _row_of_artifact(artifact)
    for item in offer.assessments if offer else ():
        rows[item.artifact_key] = _row_of_assessment(item, rows.get(item.artifact_key))
    measured = accuracy or {}
    shown = [
        row if row.artifact_key not in measured else _with_accuracy(row, measured[row.artifact_key])
        for row in rows.values()
    ]
    return tuple(sorted(shown, key=_order))


def _order(row: ArtifactRow) -> tuple[bool, float, float, str]:
    last = float("inf")
    return row.rejected, row.rank or last, row.benchmark.p50_ms if row.benchmark else last, row.recipe.name


def _row_of_build(build: Build) -> ArtifactRow:
    failed = build.phase in (BuildPhase.FAILED, BuildPhase.CANCELLED)
    ready = build.phase is BuildPhase.READY
    reason = remark(build.gate, {}) if ready else f"{build.phase}: {build.message}".rstrip(": ")
    if build.failure is not None:
        reason = f"{build.failure.code}: {build.failure.message}"
    return ArtifactRow(
        recipe=build.recipe,
        artifact_key=build.artifact_key,
        size_bytes=build.size_bytes,
        accuracy=build.gate.metric_candidate if build.gate else None,
        gate=build.gate,
        benchmark=build.benchmark,
        rejected=failed,
        untried=build.phase is BuildPhase.CANCELLED and build.gate is None,
        reason=reason,
    )


def _row_of_artifact(artifact: Artifact) -> ArtifactRow:
    manifest = artifact.manifest
    return ArtifactRow(
        recipe=manifest.recipe,
        artifact_key=manifest.artifact_key,
        size_bytes=manifest.size_bytes,
        accuracy=manifest.gate.metric_candidate,
        gate=manifest.gate,
        benchmark=manifest.benchmarks[0] if manifest.benchmarks else None,
        reason=remark(manifest.gate, manifest.labels),
    )


def _row_of_assessment(item: AssessedArtifact, known: ArtifactRow | None) -> ArtifactRow:
    before = known or ArtifactRow(recipe=item.recipe)
    gate = item.gate or before.gate
    return ArtifactRow(
        recipe=item.recipe,
        artifact_key=item.artifact_key,
        size_bytes=item.size_bytes or before.size_bytes,
        accuracy=gate.metric_candidate if gate else before.accuracy,
        gate=gate,
        benchmark=item.benchmark or before.benchmark,
        verdict=item.verdict,
        rank=item.rank,
        rejected=item.rank == 0,
        reason="\n".join(str(reason) for reason in item.reasons) or remark(gate, {}),
    )


def _with_accuracy(row: ArtifactRow, accuracy: float) -> ArtifactRow:
    values = {name: getattr(row, name) for name in ArtifactRow.__slots__}
    return ArtifactRow(**{**values, "accuracy": accuracy})


@dataclass(frozen=True, slots=True)
class _Column:
    """A column: `priority` 0 is always shown, higher ones go first when the width is short."""

    title: str
    cell: Callable[[ArtifactRow], Text]
    priority: int = 0
    right: bool = True


class ArtifactTable:
    """A rich renderable of rows; see the module's text for how it uses the width."""

    def __init__(self, rows: Sequence[ArtifactRow], *, title: str = "") -> None:
        self._rows = tuple(row for row in rows if not row.untried)
        self._untried = tuple(row for row in rows if row.untried)
        self._title = title

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the title, the header, each row with its reason below, and what was not built."""
        if self._title:
            yield Text(self._title, style="bold")
        if self._rows:
            yield from self._lines(console, options)
        for reason in sorted({row.reason for row in self._untried}):
            names = ", ".join(row.recipe.name for row in self._untried if row.reason == reason)
            yield Text(f"not built ({reason}): {names}", style="dim")

    def _lines(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns, gap = self._fitting(options.max_width)
        lines = console.render_lines(self._table(columns, gap), options.update(width=options.max_width), pad=False)
        header, body = lines[: len(lines) - len(self._rows)], lines[len(lines) - len(self._rows) :]
        for line in header:
            yield from (*line, Segment.line())
        for row, line in zip(self._rows, body, strict=True):
            yield from (*line, Segment.line())
            if row.reason:
                style = "red" if row.rejected else "dim"
                yield Padding(Text(f"└ {row.reason}", style=style, overflow="fold"), (0, 1, 0, 3))

    def _fitting(self, width: int) -> tuple[list[_Column], int]:
        """The columns that fit, and the gap between them: a narrower gap is tried before a column goes."""
        columns = [column for column in _COLUMNS if column.title not in _SHOWN_IF_FILLED or self._has(column)]
        if self._width(columns, 2) <= width:
            return columns, 2
        for priority in range(max(column.priority for column in columns), 0, -1):
            if self._width(columns, 1) <= width:
                break
            columns = [column for column in columns if column.priority < priority]
        return columns, 2 if self._width(columns, 2) <= width else 1

    def _has(self, column: _Column) -> bool:
        return any(column.cell(row).plain not in ("", "-") for row in self._rows)

    def _width(self, columns: Sequence[_Column], gap: int) -> int:
        widths = (max([len(column.title), *(len(column.cell(row)) for row in self._rows)]) for column in columns)
        return sum(widths) + gap * len(columns)

    def _table(self, columns: Sequence[_Column], gap: int) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
        for column in columns:
            justify = "right" if column.right else "left"
            table.add_column(column.title, justify=justify, no_wrap=True, overflow="ellipsis")  # type: ignore[arg-type]
        for row in self._rows:
            style = "dim" if row.rejected else "bold" if row.rank == 1 else ""
            table.add_row(*(column.cell(row) for column in columns), style=style)
        return table


def artifact_table(rows: Sequence[ArtifactRow], *, title: str = "") -> ArtifactTable:
    """The table of artifacts; print it with any rich console."""
    return ArtifactTable(rows, title=title)


def _rank(row: ArtifactRow) -> Text:
    return Text(str(row.rank) if row.rank else "-")


def _worst_snr(row: ArtifactRow) -> Text:
    outputs = row.gate.outputs if row.gate else ()
    return Text(f"{min(output.snr_db for output in outputs):.1f}" if outputs else "-")


def _worst_cosine(row: ArtifactRow) -> Text:
    outputs = row.gate.outputs if row.gate else ()
    return Text(f"{min(output.cosine for output in outputs):.6f}" if outputs else "-")


def _agreement(row: ArtifactRow) -> Text:
    return Text(percent_text(row.gate.top1_agreement if row.gate else None))


def _figure(read: Callable[[BenchmarkRecord], str]) -> Callable[[ArtifactRow], Text]:
    return lambda row: Text(read(row.benchmark) if row.benchmark else "-")


def _speedup(record: BenchmarkRecord) -> str:
    return f"{record.speedup:.2f}x" if record.speedup else "-"


def _verdict(row: ArtifactRow) -> Text:
    if row.verdict is None:
        return Text("REJECTED", style="red") if row.rejected else Text("-")
    return verdict_text(row.verdict)


_SHOWN_IF_FILLED = frozenset({"#", "verdict", "accuracy", "drop pt", "top-1 same"})
"""Columns left out where no row has anything in them."""

_COLUMNS = (
    _Column("#", _rank),
    _Column("artifact", lambda row: Text(row.recipe.name), right=False),
    _Column("key", lambda row: Text(short_key(row.artifact_key) or "-"), priority=10, right=False),
    _Column("engine", lambda row: Text(row.recipe.engine), priority=5, right=False),
    _Column("prec.", lambda row: Text(row.recipe.precision), right=False),
    _Column("size", lambda row: Text(size_text(row.size_bytes) if row.size_bytes else "-"), priority=2),
    _Column("accuracy", lambda row: metric_cell(row.accuracy, row.gate)),
    _Column("drop pt", lambda row: drop_cell(row.gate), priority=7),
    _Column("gate", lambda row: verdict_cell(row.gate), priority=8, right=False),
    _Column("SNR dB", _worst_snr, priority=6),
    _Column("cosine", _worst_cosine, priority=9),
    _Column("top-1 same", _agreement, priority=9),
    _Column("p50 ms", _figure(lambda record: time_text(record.p50_ms))),
    _Column("p99 ms", _figure(lambda record: time_text(record.p99_ms)), priority=3),
    _Column("rows/s", _figure(lambda record: rate_text(record.throughput)), priority=4),
    _Column("speed-up", _figure(_speedup)),
    _Column("verdict", _verdict, right=False),
)
