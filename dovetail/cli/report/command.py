# SPDX-License-Identifier: Apache-2.0
"""`dovetail report`: asks the service for all that it knows of a model and writes three files."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovetail.cli.context import JsonFlag, ModelVersion, connected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dovetail.cli.report.data import ReportData
    from dovetail.client import Artifact, Client
    from dovetail.layers import LayerReport


def report(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Name of the model.", metavar="MODEL")],
    version: ModelVersion = 0,
    hardware_class: Annotated[
        str, typer.Option("--class", metavar="CLASS", help="Only hardware classes whose key begins so.")
    ] = "",
    price_per_core_hour: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="PRICE", help="Price of a core-hour; without it costs are core-hours."),
    ] = None,
    out: Annotated[Path, typer.Option(file_okay=False, metavar="DIR", help="Directory for the files.")] = Path(),
    as_json: JsonFlag = False,
) -> None:
    """Write what is known of a model's artifacts as HTML, Markdown and JSON.

    Pareto plot, latencies, accuracy, cost, the best artifact and settings for each objective, what was rejected and
    why. --json prints the JSON document instead of writing files.
    """
    from dovetail.cli.output import print_json, say
    from dovetail.cli.report.document import report_document

    with connected(ctx) as client:
        data = _asked(client, model, version, hardware_class, price_per_core_hour)
    if as_json:
        print_json(report_document(data))
        return
    for path in write_report(data, out):
        say(f"wrote {path}")
    _show_best(data)


def write_report(data: ReportData, directory: Path) -> tuple[Path, ...]:
    """Write "<model>-v<version>.html", ".md" and ".json"; each is replaced whole.

    Raises:
        InvalidInputError: The directory cannot be written.
    """
    import json

    from dovetail.cli.report.document import report_document
    from dovetail.cli.report.html import html_report
    from dovetail.cli.report.markdown import markdown_report
    from dovetail.errors import InvalidInputError

    texts = {
        "html": html_report(data),
        "md": markdown_report(data),
        "json": json.dumps(report_document(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    }
    paths = tuple(directory / f"{data.model}-v{data.version}.{kind}" for kind in texts)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, texts.values(), strict=True):
            part = path.with_name(path.name + ".part")
            part.write_text(text, encoding="utf-8")
            part.replace(path)
    except OSError as exc:
        raise InvalidInputError(f"the report cannot be written to {directory}: {exc.strerror or exc}") from exc
    return paths


def _asked(client: Client, model: str, version: int, class_prefix: str, price: float | None) -> ReportData:
    from datetime import UTC, datetime

    from dovetail.cli.output import message_console
    from dovetail.cli.report.gather import report_data

    with message_console().status(f"reading what is known of {model}"):
        found = client.model(model, version)
        artifacts = client.artifacts(model, found.version)
        return report_data(
            found,
            artifacts,
            client.builds(model, found.version),
            made_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            class_prefix=class_prefix,
            price_per_core_hour=price,
            layers=_layer_reports(client, artifacts),
        )


def _layer_reports(client: Client, artifacts: Sequence[Artifact]) -> dict[str, LayerReport]:
    """Layer reports of the artifacts that have layers in float: they say why."""
    from dovetail.errors import NotFoundError

    found: dict[str, LayerReport] = {}
    for artifact in artifacts:
        key = artifact.manifest.artifact_key
        if artifact.manifest.recipe.excluded_nodes:
            with suppress(NotFoundError):  # then the recipe alone says which
                found[key] = client.layers(key)
    return found


def _show_best(data: ReportData) -> None:
    """The answer in short, on the screen."""
    from dovetail.cli.output import data_console, plain
    from dovetail.cli.report import words
    from dovetail.cli.tables import plain_table

    for report_of_class in data.classes:
        data_console().print(plain(report_of_class.key), style="bold")
        table = plain_table("objective", "artifact", "settings", "figure", "vs ort-fp32", "equal to")
        for best in report_of_class.best:
            table.add_row(
                plain(best.objective),
                plain(best.entry.recipe),
                plain(words.settings_text(best.run.record)),
                plain(words.value_text(best)),
                plain(words.ratio_text(best.ratio)),
                plain(", ".join(best.equals) or "-"),
            )
        data_console().print(table)
