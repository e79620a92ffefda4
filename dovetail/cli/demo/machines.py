# SPDX-License-Identifier: Apache-2.0
"""Last step of the demo: what machines that are not here would be offered, and what would be built for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dovetail.cli.demo.assets import other_machines
from dovetail.cli.demo.stage import MODEL, Stage
from dovetail.client import Offer
from dovetail.hardware_class import hardware_class
from dovetail.rules import Verdict


async def other_offers(stage: Stage) -> None:
    """Show what machines that are not here would be offered, and what would have to be built for them."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("machine", "class", "would get now", "verdict", "and order"):
        table.add_column(column, overflow="fold")
    summary = []
    for name, fingerprint in other_machines():
        offer = await stage.client.negotiate(MODEL, fingerprint)
        best = next(iter(offer.ladder), None)
        orders = ", ".join(order.recipe.name for order in offer.better) or "nothing better"
        table.add_row(
            name,
            hardware_class(fingerprint).isa_class,
            best.recipe.name if best else "nothing",
            best.verdict.name if best else Verdict.UNSUPPORTED.name,
            orders,
        )
        summary.append(_offer_json(name, offer))
    stage.console.print(table)
    _say_reasons(stage, summary)
    stage.report["other_machines"] = summary


def _offer_json(name: str, offer: Offer) -> dict[str, Any]:
    return {
        "machine": name,
        "hardware_class": offer.hardware_class,
        "choice": next((item.recipe.name for item in offer.ladder), ""),
        "basis": offer.basis,
        "refused": {item.recipe.name: [str(reason) for reason in item.reasons] for item in offer.refused},
        "build_orders": {
            order.recipe.name: [
                order.why,
                *([f"nobody can build it yet: needs {order.needs_worker}"] if order.needs_worker else []),
            ]
            for order in offer.better
        },
    }


def _say_reasons(stage: Stage, summary: Sequence[Mapping[str, Any]]) -> None:
    """Each reason once, for the recipes that it concerns on the same machines."""
    for title, field_name in (("Refused", "refused"), ("Build orders", "build_orders")):
        concerned: dict[tuple[str, str], list[str]] = {}
        for row in summary:
            for recipe, reasons in row[field_name].items():
                for reason in reasons:
                    concerned.setdefault((reason, recipe), []).append(row["machine"])
        grouped: dict[tuple[str, str], list[str]] = {}
        for (reason, recipe), machines in concerned.items():
            grouped.setdefault((reason, ", ".join(machines)), []).append(recipe)
        stage.console.print(Text(f"\n{title}", style="bold"))
        for (reason, machines_text), recipes in grouped.items():
            stage.console.print(
                Text(f"  {', '.join(recipes)}", style="cyan"), Text(f"for {machines_text}", style="dim")
            )
            stage.console.print(Padding(Text(reason), (0, 0, 0, 4)))
