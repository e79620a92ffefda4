# SPDX-License-Identifier: Apache-2.0
"""The command tree. Command modules import nothing heavy at their top, so that `dovetail --help` answers at once."""

from __future__ import annotations

from typing import Annotated

import typer

from dovetail.cli import builds, demo, doctor, infer, machines, models, nodes, up, why
from dovetail.cli.context import DEFAULT_SERVER, ErrorGroup, GlobalOptions
from dovetail.cli.exit_codes import TEXT

_START, _MODELS, _MACHINES = "Start", "Models and artifacts", "Machines"


def make_app() -> typer.Typer:
    """The application, ready to be called."""
    app = typer.Typer(
        name="dovetail",
        cls=ErrorGroup,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(epilog=TEXT)(_global_options)
    app.command("demo", rich_help_panel=_START)(demo.demo)
    app.command("up", rich_help_panel=_START)(up.up)
    app.command("doctor", rich_help_panel=_START)(doctor.doctor)
    app.command("version", rich_help_panel=_START)(doctor.version)
    app.command("push", rich_help_panel=_MODELS)(models.push)
    app.command("models", rich_help_panel=_MODELS)(models.models)
    app.command("compile", rich_help_panel=_MODELS)(builds.compile_model)
    app.command("artifacts", rich_help_panel=_MODELS)(builds.artifacts)
    app.command("infer", rich_help_panel=_MODELS)(infer.infer)
    app.command("why", rich_help_panel=_MACHINES)(why.why)
    app.command("fingerprint", rich_help_panel=_MACHINES)(machines.fingerprint)
    app.command("nodes", rich_help_panel=_MACHINES)(nodes.nodes)
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
