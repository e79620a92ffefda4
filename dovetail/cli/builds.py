# SPDX-License-Identifier: Apache-2.0
"""`dovetail compile` and `dovetail artifacts`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dovetail.cli.context import JsonFlag, ModelVersion, connected
from dovetail.cli.exit_codes import ExitCode


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
    fingerprint: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            metavar="FILE",
            help="Machine it is for (`dovetail fingerprint --json`). Default: the class of the live workers.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build again although the result is known.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Build a model's artifacts and watch.

    Ends with 1 if none could be built. Ctrl-C stops watching, not building.
    """
    from dovetail.cli.build_progress import BuildProgress
    from dovetail.cli.fingerprint_file import read_fingerprint
    from dovetail.cli.output import data_console, print_json, say
    from dovetail.client import BuildPhase

    target = read_fingerprint(fingerprint) if fingerprint else None
    with connected(ctx) as client, BuildProgress() as progress:
        try:
            for event in client.compile(model, version=version, recipes=recipe or (), fingerprint=target, force=force):
                progress.update(event)
        except KeyboardInterrupt:
            if progress.builds:
                say(f"the builds go on unwatched; `dovetail artifacts {model}` shows what came of them")
            raise
    builds = tuple(progress.builds.values())
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
