# SPDX-License-Identifier: Apache-2.0
"""What every command gets from the global options, and the one place where an error turns into text and exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from dovetail.cli.exit_codes import ExitCode, exit_code_of
from dovetail.errors import DovetailError

if TYPE_CHECKING:
    from dovetail.client import Client

DEFAULT_SERVER = "127.0.0.1:7001"

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout instead of tables.")]
"""Option of every command that prints data."""

ModelVersion = Annotated[int, typer.Option("--version", min=0, help="Version of the model; 0 is the newest.")]
"""Option of every command about one version."""


_UNREACHABLE = "`dovetail up` starts a mesh here; --server (before the command) or DOVETAIL_SERVER names another one."
_BUG = "This is a bug in Dovetail; `dovetail --debug COMMAND` shows more."


@dataclass(frozen=True, slots=True)
class GlobalOptions:
    """Options before the command.

    Attributes:
        server: host:port of the compiler service.
        debug: Show tracebacks.
    """

    server: str = DEFAULT_SERVER
    debug: bool = False


def global_options(ctx: typer.Context) -> GlobalOptions:
    """The global options of this call."""
    found = ctx.find_root().obj
    return found if isinstance(found, GlobalOptions) else GlobalOptions()


@contextmanager
def connected(ctx: typer.Context, *, inference: str | None = None) -> Iterator[Client]:
    """A client of the mesh that `--server` names."""
    from dovetail.client import connect

    with connect(global_options(ctx).server, inference=inference) as client:
        yield client


class ErrorGroup(TyperGroup):
    """Shows our errors as one message and ends with their exit code; nothing else reaches the user as a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except DovetailError as exc:
            code = exit_code_of(exc)
            self._show(ctx, str(exc), hint=_UNREACHABLE if code is ExitCode.NOT_REACHABLE else "")
            raise typer.Exit(code) from exc
        except KeyboardInterrupt:
            typer.echo("stopped by Ctrl-C", err=True)
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except (typer.Exit, typer.Abort, EOFError, BrokenPipeError):
            raise
        except Exception as exc:
            if _is_usage_error(exc):
                raise
            self._show(ctx, f"unexpected {type(exc).__name__}: {exc}", hint=_BUG)
            raise typer.Exit(ExitCode.FAILED) from exc

    def _show(self, ctx: Any, text: str, *, hint: str) -> None:
        if global_options(ctx).debug:
            traceback.print_exc()
        typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
        typer.echo(text, err=True)
        if hint:
            typer.echo(hint, err=True)
        sys.stderr.flush()


def _is_usage_error(exc: Exception) -> bool:
    """True for errors that the command parser shows itself; their base class is not in its public surface."""
    return any(base.__name__ == "ClickException" for base in type(exc).__mro__)
