# SPDX-License-Identifier: Apache-2.0
"""`dovetail fingerprint`: what this machine is, as far as choosing an artifact goes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from dovetail.cli.context import JsonFlag


def fingerprint(
    explain: Annotated[bool, typer.Option("--explain", help="Every fact with where it was read.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Measure this machine; needs no server. --json prints the document that --fingerprint options read."""
    from dovetail.cli.output import data_console, message_console
    from dovetail.probe import explain as explained
    from dovetail.probe import measure_sync

    with message_console().status("measuring this machine"):
        measured = measure_sync()
    if as_json:
        sys.stdout.write(measured.to_bytes().decode() + "\n")
    elif explain:
        from rich.text import Text

        from dovetail.cli.tables import plain_table

        table = plain_table("fact", "value", "source")
        for fact, value, source in explained(measured):
            table.add_row(Text(fact), Text(value), Text(source, style="dim"))
        data_console().print(table)
    else:
        from dovetail.cli.fingerprint_view import fingerprint_panel

        data_console().print(fingerprint_panel(measured))
