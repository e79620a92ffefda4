# SPDX-License-Identifier: Apache-2.0
"""`dovetail stale`: artifacts whose tools are superseded, and on demand the same recipes with the new tools."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from dovetail.cli.context import JsonFlag, connected
from dovetail.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from dovetail.client import Build, Client, StaleArtifact

_Order = tuple[str, int, str]  # model, version, hardware class


def stale(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Only this model's.", metavar="[MODEL]")] = "",
    requeue: Annotated[
        bool, typer.Option("--requeue", help="Order the same recipes for the same class again, with the new tools.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """List artifacts that a live worker would build with newer tools.

    With --requeue it builds those that have no successor yet; the old ones stay. Ends with 1 if one of them fails.
    """
    from dovetail.cli.output import print_json, say

    with connected(ctx) as client:
        if model:
            client.model(model)
        found = client.stale(model)
        builds = _requeued(client, found) if requeue else ()
    if as_json:
        from dovetail.cli.documents import build_document, stale_document

        listed = [stale_document(item) for item in found]
        print_json({"stale": listed, "builds": [build_document(build) for build in builds]})
    elif not found:
        say("no artifact has tools older than those of the live workers")
    else:
        _show(found, builds)
    _fail_if_needed(builds)


def _requeued(client: Client, found: Iterable[StaleArtifact]) -> tuple[Build, ...]:
    """Order what has no successor, one order for each model version and class, and wait."""
    from dovetail.cli.build_progress import BuildProgress
    from dovetail.cli.output import say
    from dovetail.client import BuildPriority

    orders: dict[_Order, set[str]] = {}
    for item in found:
        if not item.successor:
            orders.setdefault((item.model, item.version, item.hardware_class), set()).add(item.recipe)
    with BuildProgress() as progress:
        for (name, version, hardware_class), recipes in sorted(orders.items()):
            for event in client.compile(
                name,
                version=version,
                recipes=sorted(recipes),
                hardware_class=hardware_class,
                priority=BuildPriority.BACKGROUND,
                on_interrupted=say,
            ):
                progress.update(event)
    return tuple(progress.builds.values())


def _show(found: Iterable[StaleArtifact], builds: Iterable[Build]) -> None:
    from dovetail.cli.artifact_table import artifact_table, rows_of
    from dovetail.cli.output import data_console
    from dovetail.cli.tables import stale_table

    data_console().print(stale_table(found))
    built = tuple(builds)
    if built:
        data_console().print()
        data_console().print(artifact_table(rows_of(builds=built)))


def _fail_if_needed(builds: Iterable[Build]) -> None:
    from dovetail.client import BuildPhase

    if any(build.phase is not BuildPhase.READY for build in builds):
        raise typer.Exit(ExitCode.FAILED)
