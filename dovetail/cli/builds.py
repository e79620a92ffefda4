# SPDX-License-Identifier: Apache-2.0
"""`dovetail compile`, `dovetail rebuild` and `dovetail artifacts`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovetail.cli.context import JsonFlag, ModelVersion, connected
from dovetail.cli.durations import parse_duration
from dovetail.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from dovetail.client import Build
    from dovetail.fingerprint import Fingerprint


class Objective(StrEnum):
    """`dovetail.client.Objective`, which would take the whole SDK along into `--help`; a test compares the two."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    MEMORY = "memory"
    SIZE = "size"


def compile_model(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Name of the model.", metavar="MODEL")],
    version: ModelVersion = 0,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RECIPE", help="Build this recipe; may be repeated. Default: all that the machine can use."
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="this|CLASS|fleet",
            help="Machine it is for: this one; a hardware class that a worker or node has, or the front of its key "
            "(`dovetail nodes`); or every such class. Default: the classes of the live workers.",
        ),
    ] = "",
    fingerprint: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            metavar="FILE",
            help="Machine it is for, by its document (`dovetail fingerprint --json`).",
        ),
    ] = None,
    objective: Annotated[
        Objective, typer.Option(help="What is optimised: what is built first, how settings are searched.")
    ] = Objective.LATENCY,
    budget: Annotated[
        float | None,
        typer.Option(
            parser=parse_duration,
            metavar="TIME",
            help="Search for so long (90s, 5m, 1h): try more recipes and settings. Default: no search.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build again although the result is known.")] = False,
    log: Annotated[bool, typer.Option("--log", help="Show what the compiler prints while it runs.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Build a model's artifacts and watch.

    Ends with 1 if none could be built. Ctrl-C stops watching, not building; a service that restarts meanwhile is waited
    for.
    """
    from dovetail.cli.build_progress import BuildProgress
    from dovetail.cli.output import say
    from dovetail.client import Objective as Wanted

    machine, hardware_class = _target(target, fingerprint)
    with connected(ctx) as client, BuildProgress() as progress:
        try:
            for event in client.compile(
                model,
                version=version,
                recipes=recipe or (),
                fingerprint=machine,
                hardware_class=hardware_class,
                objective=Wanted(objective.value),
                budget_s=budget or 0.0,
                force=force,
                with_log=log,
                on_interrupted=say,
            ):
                progress.update(event)
        except KeyboardInterrupt:
            if progress.builds:
                say(f"the builds go on unwatched; `dovetail artifacts {model}` shows what came of them")
            raise
    _show(tuple(progress.builds.values()), as_json=as_json)


def rebuild(
    ctx: typer.Context,
    artifact: Annotated[str, typer.Argument(help="Key of the artifact, or its front.", metavar="ARTIFACT")],
    as_json: JsonFlag = False,
) -> None:
    """Build an artifact again from its manifest alone, and say whether the bytes are the same.

    Needs a live worker with exactly the tools that the manifest names. The old artifact stays until the new one is
    published. Ends with 1 if the build fails.
    """
    from dovetail.cli.artifact_names import full_key
    from dovetail.cli.build_progress import BuildProgress
    from dovetail.cli.output import say

    with connected(ctx) as client:
        key = full_key(client, artifact)
        with BuildProgress() as progress:
            for event in client.rebuild(key, on_interrupted=say):
                progress.update(event)
    builds = tuple(progress.builds.values())
    for build in builds:
        say(f"{build.recipe.name} {build.artifact_key[:12]}: {build.message}")
    _show(builds, as_json=as_json)


def _target(target: str, document: Path | None) -> tuple[Fingerprint | None, str]:
    """The machine that `--for` or `--fingerprint` means: its fingerprint, or the key of its class."""
    from dovetail.cli.fingerprint_file import read_fingerprint
    from dovetail.cli.output import message_console
    from dovetail.errors import InvalidInputError

    if target and document:
        raise InvalidInputError("--for and --fingerprint both name the machine; give one of them")
    if document:
        return read_fingerprint(document), ""
    if target != "this":
        return None, target
    from dovetail.probe import measure_sync

    with message_console().status("measuring this machine"):
        return measure_sync(), ""


def _show(builds: tuple[Build, ...], *, as_json: bool) -> None:
    """The end of a command that built: the table, and exit code 1 if nothing is ready."""
    from dovetail.cli.output import data_console, print_json
    from dovetail.client import BuildPhase

    if as_json:
        from dovetail.cli.documents import build_document

        print_json([build_document(build) for build in builds])
    else:
        from dovetail.cli.artifact_table import artifact_table, rows_of

        data_console().print(artifact_table(rows_of(builds=builds)))
    if not any(build.phase is BuildPhase.READY for build in builds):
        raise typer.Exit(ExitCode.FAILED)


def artifacts(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Only this model's.", metavar="[MODEL]")] = "",
    version: ModelVersion = 0,
    as_json: JsonFlag = False,
) -> None:
    """List artifacts with their figures.

    Rejected ones stay in the list with the reason.
    """
    from dovetail.cli.artifact_table import artifact_table, rows_of
    from dovetail.cli.output import data_console, print_json, say
    from dovetail.client import BuildPhase

    with connected(ctx) as client:
        if model:
            version = client.model(model, version).version
        found = client.artifacts(model, version)
        rejected = [build for build in client.builds(model, version) if build.phase is BuildPhase.FAILED]
    if as_json:
        from dovetail.cli.documents import artifact_document, rejected_document

        rows = {row.artifact_key: row for row in rows_of(builds=rejected)}
        print_json(
            [artifact_document(artifact) for artifact in found]
            + [rejected_document(build, rows[build.artifact_key]) for build in rejected]
        )
        return
    if not found and not rejected:
        say(f"no artifacts yet: dovetail compile {model or 'MODEL'}")
    titles = {(item.manifest.model, item.manifest.version) for item in found}
    titles |= {(build.model, build.version) for build in rejected}
    for name, number in sorted(titles):
        rows_here = rows_of(
            builds=[build for build in rejected if (build.model, build.version) == (name, number)],
            artifacts=[item for item in found if (item.manifest.model, item.manifest.version) == (name, number)],
        )
        data_console().print(artifact_table(rows_here, title=f"{name} version {number}"))
