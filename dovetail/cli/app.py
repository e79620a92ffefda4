# SPDX-License-Identifier: Apache-2.0
"""The command tree. Command modules import nothing heavy at their top, so that `dovetail --help` answers at once."""

from __future__ import annotations

from typing import Annotated

import typer

from dovetail.cli import (
    build_list,
    builds,
    cache_node,
    debug,
    demo,
    doctor,
    infer,
    machines,
    models,
    nodes,
    push,
    stale,
    up,
    why,
    workers,
)
from dovetail.cli.context import DEFAULT_SERVER, ErrorGroup, GlobalOptions
from dovetail.cli.exit_codes import TEXT
from dovetail.cli.jobs import make_jobs
from dovetail.cli.keys import app as keys
from dovetail.cli.report import command as report
from dovetail.cli.store import make_store


def make_app() -> typer.Typer:
    """The application, ready to be called."""
    app = typer.Typer(
        name="dovetail",
        cls=ErrorGroup,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # plain help starts 100 ms sooner: rich's takes a Markdown parser along
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(epilog=TEXT)(_global_options)
    app.command("demo")(demo.demo)
    app.command("up")(up.up)
    app.command("cache-node")(cache_node.cache_node)
    app.command("doctor")(doctor.doctor)
    app.command("version")(doctor.version)
    app.command("push")(push.push)
    app.command("models")(models.models)
    app.command("compile")(builds.compile_model)
    app.command("builds")(build_list.builds)
    app.add_typer(make_jobs(), name="jobs")
    app.command("workers")(workers.workers)
    app.add_typer(make_store(), name="store")
    app.command("artifacts")(builds.artifacts)
    app.command("rebuild")(builds.rebuild)
    app.command("stale")(stale.stale)
    app.command("report")(report.report)
    app.command("debug")(debug.debug)
    app.command("infer")(infer.infer)
    app.command("why")(why.why)
    app.command("fingerprint")(machines.fingerprint)
    app.command("nodes")(nodes.nodes)
    app.add_typer(keys, name="keys")
    return app


def _global_options(
    ctx: typer.Context,
    server: Annotated[
        str,
        typer.Option(envvar="DOVETAIL_SERVER", metavar="HOST:PORT", help="Compiler service that commands talk to."),
    ] = DEFAULT_SERVER,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """One model in; on every machine, the artifact that fits it."""
    ctx.obj = GlobalOptions(server=server, debug=debug)
