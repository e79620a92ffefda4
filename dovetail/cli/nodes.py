# SPDX-License-Identifier: Apache-2.0
"""`dovetail nodes`."""

from __future__ import annotations

import typer

from dovetail.cli.context import JsonFlag, connected


def nodes(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """List nodes of the mesh, what they are and what they serve."""
    from dovetail.cli.output import data_console, print_json, say

    with connected(ctx) as client:
        found = client.nodes()
    if as_json:
        from dovetail.cli.documents import node_document

        print_json([node_document(node) for node in found])
    elif not found:
        say("no node reported itself yet")
    else:
        from dovetail.cli.tables import node_table

        data_console().print(node_table(found))
