# SPDX-License-Identifier: Apache-2.0
"""`dovetail push` and `dovetail models`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dovetail.cli.context import JsonFlag, connected


def push(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the model: a-z 0-9 . _ -", metavar="NAME")],
    model: Annotated[Path, typer.Argument(help="The .onnx file.", exists=True, dir_okay=False, metavar="MODEL.onnx")],
    calibration: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            metavar="FILE.npz",
            help="Samples for int8: one array per input, first axis is the sample.",
        ),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            metavar="FILE.npz",
            help="Samples for the gate, disjoint from calibration; with an array of labels accuracy is compared too.",
        ),
    ] = None,
    external_data: Annotated[
        list[Path] | None,
        typer.Option(exists=True, dir_okay=False, metavar="FILE", help="File that the model names as external data."),
    ] = None,
    task: Annotated[str, typer.Option(help="classification or generic; default: decided by the labels.")] = "",
    label_array: Annotated[str, typer.Option(help="Name of the label array; default: label.")] = "",
    max_metric_drop: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Allowed loss of accuracy, as a fraction.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Push a model; the same content again changes nothing."""
    from dovetail.cli.output import print_json, say, shape_text
    from dovetail.cli.transfer_bar import transfer_bar

    with connected(ctx) as client, transfer_bar(f"pushing {name}") as on_progress:
        result = client.push(
            name,
            model,
            calibration=calibration,
            validation=validation,
            external_data=external_data or (),
            task=task,
            label_array=label_array,
            max_metric_drop=max_metric_drop,
            on_progress=on_progress,
        )
    if as_json:
        from dovetail.cli.documents import push_document

        print_json(push_document(result))
        return
    pushed = result.model
    say(f"{pushed.name} version {pushed.version}{'' if result.created else ' has this content already'}")
    for note in result.notes:
        say(f"  {note}")
    for kind, specs in (("input", pushed.inputs), ("output", pushed.outputs)):
        for spec in specs:
            say(f"  {kind} {spec.name}: {spec.datatype} {shape_text(spec.shape)}")
    say(f"next: dovetail compile {pushed.name}")


def models(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Only this model.", metavar="[NAME]")] = "",
    as_json: JsonFlag = False,
) -> None:
    """List models and their versions."""
    from dovetail.cli.output import data_console, print_json, say
    from dovetail.errors import NotFoundError

    with connected(ctx) as client:
        found = client.models(name)
    if name and not found:
        raise NotFoundError(f"no model {name!r}; `dovetail models` lists all")
    if as_json:
        from dovetail.cli.documents import model_document

        print_json([model_document(model) for model in found])
    elif not found:
        say("no models yet: dovetail push NAME MODEL.onnx")
    else:
        from dovetail.cli.tables import model_table

        data_console().print(model_table(found))
