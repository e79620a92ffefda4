# SPDX-License-Identifier: Apache-2.0
"""`dovetail debug`: where the error of a quantised artifact arises. How a report looks is in `layer_view`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovetail.cli.context import JsonFlag, ModelVersion, connected
from dovetail.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from dovetail.client import Client

_LEAST = 6  # hex digits of a key; fewer are likely to be a slip


def debug(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Name of the model.", metavar="MODEL")],
    artifact: Annotated[
        str, typer.Argument(help="Recipe, or key of the artifact or failed build, or its front.", metavar="ARTIFACT")
    ],
    version: ModelVersion = 0,
    plot: Annotated[
        Path | None, typer.Option(dir_okay=False, metavar="FILE.png", help="Also draw it; needs matplotlib.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show where an int8 or int4 artifact's error arises, layer by layer.

    Works for artifacts and for builds that missed the gate.
    """
    from dovetail.cli.layer_view import layer_view
    from dovetail.cli.output import data_console, print_json, say

    with connected(ctx) as client:
        version = version or client.model(model).version
        report = client.layers(_key(client, model, version, artifact))
    if plot is not None:
        from dovetail.cli.layer_plot import draw

        draw(report, plot, title=f"{model} version {version}: {report.recipe}")
        say(f"wrote {plot}")
    if as_json:
        jump = report.first_jump()
        first = None if jump is None else {"tensor": jump.tensor, "node": jump.node,
                                           "before_db": jump.before_db, "snr_db": jump.snr_db}  # fmt: skip
        print_json({"model": model, "version": version, "first_jump": first, **report.to_json()})
    else:
        data_console().print(layer_view(report))


def _key(client: Client, model: str, version: int, named: str) -> str:
    """The artifact or ended build that is meant: by recipe, or by the front of its key. Artifacts come first."""
    found = {item.manifest.artifact_key: item.manifest.recipe.name for item in client.artifacts(model, version)}
    ready = set(found)
    found |= {
        build.artifact_key: build.recipe.name
        for build in client.builds(model, version)
        if build.artifact_key and build.phase.ended and build.artifact_key not in ready
    }
    keys = [key for key, recipe in found.items() if recipe == named]
    keys = [key for key in keys if key in ready] or keys
    if not keys and len(named) >= _LEAST:
        keys = [key for key in found if key.startswith(named)]
    if not keys:
        known = ", ".join(sorted(set(found.values()))) or "none"
        raise NotFoundError(
            f"{model} version {version} has no artifact or failed build {named[:80]!r}; there are {known}"
        )
    if len(keys) > 1:
        fronts = ", ".join(key[:12] for key in sorted(keys))
        raise InvalidInputError(f"{named[:80]!r} stands for {len(keys)} artifacts; name one by its key: {fronts}")
    return keys[0]
