# SPDX-License-Identifier: Apache-2.0
"""`dovetail push`: a model with its samples and policy as options, or a bundle that says all of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovetail.cli.context import JsonFlag, connected
from dovetail.cli.push_options import (
    DropOption,
    FilesOption,
    LabelOption,
    OutputOption,
    RangeOption,
    SamplesOption,
    TaskOption,
    TenantOption,
    ToleranceOption,
    read_ranges,
    read_tolerances,
)

if TYPE_CHECKING:
    from dovetail.client import PushResult


def push(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(help="Name of the model: a-z 0-9 . _ -; or a bundle alone.", metavar="NAME|BUNDLE")
    ],
    model: Annotated[
        Path | None,
        typer.Argument(
            help="The .onnx file, or a program that torch.export.save wrote (.pt2); or a bundle to push as NAME: a"
            " folder or zip with the model and a dovetail.yaml, such as dovetail.export writes.",
            exists=True,
            metavar="[MODEL.onnx|MODEL.pt2|BUNDLE]",
        ),
    ] = None,
    calibration: SamplesOption = None,
    validation: SamplesOption = None,
    external_data: FilesOption = None,
    task: TaskOption = "",
    label_array: LabelOption = "",
    output: OutputOption = "",
    max_drop: DropOption = None,
    tolerance: ToleranceOption = None,
    ranges: RangeOption = None,
    tenant: TenantOption = "",
    as_json: JsonFlag = False,
) -> None:
    """Push a model, or a bundle that says all the rest; the same content again changes nothing.

    Calibration samples are for int8; validation samples, disjoint from them, for the gate.
    """
    from dovetail.cli.transfer_bar import transfer_bar

    given = (calibration, validation, external_data, task, label_array, output, tolerance, ranges)
    bundle = _bundle(name, model, options=any(given) or max_drop is not None)
    with connected(ctx) as client, transfer_bar(f"pushing {name}") as on_progress:
        if bundle is not None:
            chosen = "" if model is None else name
            result = client.push_bundle(bundle, name=chosen, tenant=tenant, on_progress=on_progress)
        else:
            result = client.push(
                name,
                model or Path(),
                calibration=calibration,
                validation=validation,
                external_data=external_data or (),
                task=task,
                label_array=label_array,
                output=output,
                max_metric_drop=max_drop,
                tolerances=read_tolerances(tolerance or ()),
                ranges=read_ranges(ranges or ()),
                tenant=tenant,
                on_progress=on_progress,
            )
    _show(result, as_json=as_json)


def _bundle(name: str, model: Path | None, *, options: bool) -> Path | None:
    """The bundle that is meant; None if it is a model with options."""
    from dovetail.client.bundle import is_bundle

    path = Path(name) if model is None else model
    if not is_bundle(path):
        if model is None:
            raise typer.BadParameter(f"{name!r} is no bundle (a folder or .zip); else give NAME and MODEL.onnx")
        return None
    if options:
        raise typer.BadParameter("a bundle says all of it in its dovetail.yaml; leave the other options out")
    return path


def _show(result: PushResult, *, as_json: bool) -> None:
    from dovetail.cli.output import print_json, say, shape_text

    if as_json:
        from dovetail.cli.documents import push_document

        print_json(push_document(result))
        return
    pushed = result.model
    say(f"{pushed.name} version {pushed.version}{'' if result.created else ' has this content already'}")
    for note in result.notes:
        say(f"  {note}")
    if pushed.export_check is not None:
        say(f"  {pushed.export_check.text}")
    for kind, specs in (("input", pushed.inputs), ("output", pushed.outputs)):
        for spec in specs:
            say(f"  {kind} {spec.name}: {spec.datatype} {shape_text(spec.shape)}")
    say(f"next: dovetail compile {pushed.name}")
