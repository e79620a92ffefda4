# SPDX-License-Identifier: Apache-2.0
"""A negotiation, explained: the four groups that `dovetail why` shows, and the grouping itself as a pure function.

1. offered, in rank order; 2. fits but too little memory is free; 3. incompatible, each with the reason and the way out;
4. would be better and is not built yet, with the order and who could build it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dovetail.cli.output import rate_text, size_text, time_text, verdict_text
from dovetail.client import AssessedArtifact, BuildOrder, Objective, Offer
from dovetail.rules import Reason, Verdict

MEMORY_RULE = "memory"
"""Name of the rule that compares needed with free memory."""

_BASIS = {
    "measured": "ranked by figures measured on this hardware class",
    "prior": "nothing is measured on this hardware class yet: the order is an expectation, not a measurement",
    "mixed": "partly measured on this hardware class, partly expected",
}


@dataclass(frozen=True, slots=True)
class OfferGroups:
    """The four groups, each in the offer's own order."""

    offered: tuple[AssessedArtifact, ...]
    low_memory: tuple[AssessedArtifact, ...]
    incompatible: tuple[AssessedArtifact, ...]
    better: tuple[BuildOrder, ...]


def group_offer(offer: Offer) -> OfferGroups:
    """Sort an offer's artifacts into the groups; every artifact is in exactly one."""
    low_memory = tuple(item for item in offer.refused if _only_memory_is_short(item))
    incompatible = tuple(item for item in offer.refused if not _only_memory_is_short(item))
    return OfferGroups(offer.ladder, low_memory, incompatible, offer.better)


def _only_memory_is_short(item: AssessedArtifact) -> bool:
    deciding = [reason for reason in item.reasons if reason.verdict >= Verdict.RECOMPILE]
    return bool(deciding) and all(reason.rule == MEMORY_RULE for reason in deciding)


def offer_panel(offer: Offer, *, title: str = "") -> RenderableType:
    """The whole decision, for a person."""
    groups = group_offer(offer)
    head = title or f"{offer.model} version {offer.version} on {offer.hardware_label}"
    parts: list[RenderableType] = [
        Text.assemble(("class      ", "dim"), offer.hardware_class),
        Text.assemble(("objective  ", "dim"), f"{offer.objective}; {_BASIS.get(offer.basis, offer.basis)}"),
    ]
    parts += _group("Offered, best first", _offered(groups.offered, offer.objective))
    parts += _group("Fits, but too little memory is free", _refused(groups.low_memory))
    parts += _group("Incompatible here", _refused(groups.incompatible))
    parts += _group("Would be better, not built yet", _better(groups.better))
    if not groups.offered:
        parts.insert(2, Text("Nothing that is built fits this machine yet.", style="bold yellow"))
    return Panel(Group(*parts), title=Text(head, style="bold"), title_align="left", border_style="dim")


def _group(title: str, body: RenderableType | None) -> list[RenderableType]:
    return [] if body is None else [Text(), Text(title, style="bold"), Padding(body, (0, 0, 0, 2))]


def _offered(items: Iterable[AssessedArtifact], objective: Objective) -> RenderableType | None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(justify="right")
    table.add_column(no_wrap=True)
    for _ in range(2):
        table.add_column()
    table.add_column(ratio=1)
    for item in items:
        style = "bold" if item.rank == 1 else ""
        table.add_row(
            str(item.rank), item.recipe.name, verdict_text(item.verdict), size_text(item.size_bytes),
            Text(_why_this_rank(item, objective)), style=style,
        )  # fmt: skip
        for reason in item.reasons:
            table.add_row("", "", "", "", Text(reason_text(reason), style="dim"))
    return table if table.row_count else None


def _why_this_rank(item: AssessedArtifact, objective: Objective) -> str:
    record = item.benchmark
    if item.measured and record is not None:
        figures = f"p50 {time_text(record.p50_ms)} ms, p99 {time_text(record.p99_ms)} ms"
        if objective is Objective.THROUGHPUT:
            figures = f"{rate_text(record.throughput)} rows/s, {figures}"
        if record.speedup:
            figures += f", {record.speedup:.2f}x the unoptimised model"
        return f"measured: {figures}"
    return f"expected about {item.prior_speed:.1f}x ONNX Runtime fp32; not measured on this class"


def _refused(items: Iterable[AssessedArtifact]) -> RenderableType | None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_column(ratio=1)
    for item in items:
        lines = [reason_text(reason) for reason in _deciding(item)] or [
            "not offered: below the accuracy floor asked for"
        ]
        table.add_row(item.recipe.name, verdict_text(item.verdict), Text("\n".join(lines)))
    return table if table.row_count else None


def _deciding(item: AssessedArtifact) -> Iterator[Reason]:
    return (reason for reason in item.reasons if reason.verdict > Verdict.OPTIMAL)


def reason_text(reason: Reason) -> str:
    """A reason in one line: the rule, what is needed, what is there, and the way out if there is one."""
    text = f"{reason.rule}: needs {reason.needs}, has {reason.has}"
    return f"{text} → {reason.way_out}" if reason.way_out else text


def _better(orders: Iterable[BuildOrder]) -> RenderableType | None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_column(ratio=1)
    for order in orders:
        state = str(order.phase) if order.phase is not None else "not ordered"
        worker = f"needs {order.needs_worker}" if order.needs_worker else "a live worker can build it"
        table.add_row(order.recipe.name, Text(state, style="cyan"), Text("; ".join(filter(None, (order.why, worker)))))
    return table if table.row_count else None
