# SPDX-License-Identifier: Apache-2.0
"""`dovetail jobs`: the queue and its dead, trying them again, and cancelling. What came of builds: `build_list`."""

from __future__ import annotations

from typing import Annotated

import typer

from dovetail.cli.context import ErrorGroup, JsonFlag, connected
from dovetail.errors import InvalidInputError


def make_jobs() -> typer.Typer:
    """The group of commands about jobs; without one of them it lists."""
    group = typer.Typer(cls=ErrorGroup, pretty_exceptions_enable=False, rich_markup_mode=None)
    group.callback(invoke_without_command=True)(jobs)
    group.command("retry")(retry)
    group.command("cancel")(cancel)
    return group


def jobs(
    ctx: typer.Context,
    hardware_class: Annotated[
        str,
        typer.Option("--class", metavar="CLASS", help="Only jobs for this hardware class, or the front of its key."),
    ] = "",
    dead: Annotated[
        bool,
        typer.Option("--dead", help="Jobs that ended for infrastructure, such as three lost workers, with each try."),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """List what is being built and what waits, for which class, since when, and why.

    Waiting jobs are in the order in which they would be taken. `dovetail builds` lists all builds, ended ones included.
    """
    if ctx.invoked_subcommand:
        return
    from dovetail.cli.output import data_console, print_json, say

    with connected(ctx) as client:
        found = client.jobs(hardware_class=hardware_class, dead=dead)
    if as_json:
        from dovetail.cli.documents import job_document

        print_json({"jobs": [job_document(job) for job in found.jobs], "total": found.total, "now_ms": found.now_ms})
    elif not found.jobs:
        say("no dead jobs" if dead else "nothing is being built and nothing waits: dovetail compile MODEL")
    else:
        from dovetail.cli.jobs_view import dead_table, job_table

        data_console().print(dead_table(found) if dead else job_table(found))
        if found.total > len(found.jobs):
            say(f"and {found.total - len(found.jobs)} more")


def retry(
    ctx: typer.Context,
    keys: Annotated[list[str] | None, typer.Argument(help="Keys, or their fronts.", metavar="[KEY]...")] = None,
    all_dead: Annotated[bool, typer.Option("--all-dead", help="All that `dovetail jobs --dead` lists.")] = False,
) -> None:
    """Order jobs again that failed or were cancelled, as they were ordered, with all tries before them."""
    from dovetail.cli.artifact_names import full_build_key
    from dovetail.cli.build_progress import state_text
    from dovetail.cli.output import say, short_key

    if bool(keys) == all_dead:
        raise InvalidInputError("name the jobs to try again, or give --all-dead")
    with connected(ctx) as client:
        builds = client.retry_jobs([full_build_key(client, key) for key in keys or ()], all_dead=all_dead)
    for build in builds:
        say(f"{build.recipe.name} {short_key(build.artifact_key)}: {state_text(build)}")
    if not builds:
        say("no dead jobs")


def cancel(
    ctx: typer.Context,
    keys: Annotated[list[str], typer.Argument(help="Keys, or their fronts.", metavar="KEY...")],
) -> None:
    """Stop builds that wait or run; a running one's processes are killed."""
    from dovetail.cli.artifact_names import full_build_key
    from dovetail.cli.output import say, short_key

    with connected(ctx) as client:
        for key in [full_build_key(client, key) for key in keys]:
            build = client.cancel(key)
            say(f"{build.recipe.name} {short_key(build.artifact_key)}: {build.phase}")
