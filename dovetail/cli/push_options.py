# SPDX-License-Identifier: Apache-2.0
"""Options of `dovetail push` as the parser takes them, and the reading of those with a form of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dovetail.ranges import DimRange

SamplesOption = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        metavar="SAMPLES",
        help=".npz with one array per input, first axis is the sample; or a folder with one .npy per input.",
    ),
]
FilesOption = Annotated[
    list[Path] | None,
    typer.Option(exists=True, dir_okay=False, metavar="FILE", help="File that the model names as external data."),
]
TaskOption = Annotated[
    str,
    typer.Option(help="classification, regression, embedding, detection or generic; default: decided by the labels."),
]
LabelOption = Annotated[str, typer.Option(help="Name of the label array; default: label.")]
OutputOption = Annotated[str, typer.Option(help="Output that the task metric reads; default: the first.")]
DropOption = Annotated[
    float | None,
    typer.Option(
        "--max-drop", "--max-metric-drop", min=0.0, max=1.0, help="Allowed loss of the task metric, as a fraction."
    ),
]
ToleranceOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="Threshold of the gate instead of the default, such as min_snr_db=25."),
]
RangeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--range", metavar="INPUT:AXIS=MIN,USUAL,MAX", help="Sizes of a free dimension, such as ids:1=8,128,512."
    ),
]

TenantOption = Annotated[
    str, typer.Option(metavar="NAME", help="Whose quota it counts for; default: default. Also for a bundle.")
]

_RANGE = re.compile(r"(?P<input>.+):(?P<axis>\d{1,9})=(?P<min>\d{1,18}),(?P<usual>\d{1,18}),(?P<max>\d{1,18})")


def read_tolerances(texts: Sequence[str]) -> dict[str, float]:
    """NAME=VALUE each; whether the names are known is checked with the policy.

    Raises:
        typer.BadParameter: One has another form, or a name is there twice.
    """
    found: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            raise typer.BadParameter(f"--tolerance {text!r}: expected NAME=VALUE, such as min_snr_db=25") from None
        if name in found:
            raise typer.BadParameter(f"--tolerance {name} is given twice")
        found[name] = number
    return found


def read_ranges(texts: Sequence[str]) -> tuple[DimRange, ...]:
    """INPUT:AXIS=MIN,USUAL,MAX each; an input's name may hold colons itself.

    Raises:
        typer.BadParameter: One has another form.
        InvalidInputError: Sizes out of order.
    """
    from dovetail.ranges import DimRange

    found = []
    for text in texts:
        parts = _RANGE.fullmatch(text)
        if parts is None:
            raise typer.BadParameter(f"--range {text!r}: expected INPUT:AXIS=MIN,USUAL,MAX, such as ids:1=8,128,512")
        sizes = (int(parts[name]) for name in ("axis", "min", "usual", "max"))
        found.append(DimRange(parts["input"], *sizes))
    return tuple(found)
