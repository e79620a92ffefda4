# SPDX-License-Identifier: Apache-2.0
"""`dovetail builds`: what was ordered, where it is, and what waits for a worker that nobody is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dovetail.cli.context import JsonFlag, ModelVersion, connected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from dovetail.client import Build


def builds(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Only builds of this model.", metavar="[MODEL]")] = "",
    version: ModelVersion = 0,
    as_json: JsonFlag = False,
) -> None:
    """List builds, the newest first, and before them orders that no live worker covers.

    An order in phase "unrouted" waits: its text says what a worker must have, and it is placed when one comes.
    `dovetail jobs` shows what runs and waits now, in the order in which it is taken.
    """
    from dovetail.cli.output import data_console, print_json, say

    with connected(ctx) as client:
        found = client.builds(model, version)
    if as_json:
        from dovetail.cli.documents import build_document

        print_json([build_document(build) for build in found])
    elif not found:
        say("nothing was ordered yet: dovetail compile MODEL")
    else:
        data_console().print(_table(found))


def _table(found: Sequence[Build]) -> Table:
    from rich.text import Text

    from dovetail.cli.build_progress import state_text
    from dovetail.cli.output import short_key
    from dovetail.cli.tables import plain_table

    table = plain_table("model", "recipe", "artifact", "class", "state")
    for build in found:
        table.add_row(
            Text(f"{build.model} v{build.version}"),
            Text(build.recipe.name),
            Text(short_key(build.artifact_key) or "-"),
            Text(build.hardware_class),
            Text(state_text(build)),
        )
    return table
