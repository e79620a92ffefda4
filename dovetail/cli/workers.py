# SPDX-License-Identifier: Apache-2.0
"""`dovetail workers`."""

from __future__ import annotations

import typer

from dovetail.cli.context import JsonFlag, connected


def workers(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """List live build workers: engines with their exact versions, what they build, which are stopping."""
    from dovetail.cli.output import data_console, print_json, say

    with connected(ctx) as client:
        found = client.workers()
    if as_json:
        from dovetail.cli.documents import worker_document

        print_json([worker_document(worker) for worker in found])
    elif not found:
        say("no build worker is alive; orders wait until one is: python -m compiler_svc.worker")
    else:
        from dovetail.cli.jobs_view import worker_table

        data_console().print(worker_table(found))
