# SPDX-License-Identifier: Apache-2.0
"""`dovetail models`."""

from __future__ import annotations

from typing import Annotated

import typer

from dovetail.cli.context import JsonFlag, connected


def models(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Only this model.", metavar="[NAME]")] = "",
    as_json: JsonFlag = False,
) -> None:
    """List models and their versions."""
    from dovetail.cli.output import data_console, print_json, say
    from dovetail.errors import NotFoundError

    with connected(ctx) as client:
        found = client.models(name)
    if name and not found:
        raise NotFoundError(f"no model {name!r}; `dovetail models` lists all")
    if as_json:
        from dovetail.cli.documents import model_document

        print_json([model_document(model) for model in found])
    elif not found:
        say("no models yet: dovetail push NAME MODEL.onnx")
    else:
        from dovetail.cli.tables import model_table

        data_console().print(model_table(found))
