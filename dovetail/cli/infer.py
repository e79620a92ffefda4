# SPDX-License-Identifier: Apache-2.0
"""`dovetail infer`: one inference with arrays from files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovetail.cli.context import JsonFlag, connected
from dovetail.errors import InvalidInputError
from dovetail.zip_damage import telling_damage

if TYPE_CHECKING:
    from dovetail.tensor import Array, TensorSpec


def infer(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Name of the model.", metavar="MODEL")],
    inputs: Annotated[
        list[str],
        typer.Option(
            "--input",
            metavar="[NAME=]FILE",
            help="Array to send: x.npy or NAME=x.npy, or an .npz with one array per input; may be repeated.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the result: .npy for one output, .npz for any number.")
    ] = None,
    version: Annotated[str, typer.Option("--version", help="Version; default: what the node serves.")] = "",
    server: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Node to ask; default: one that serves the model is looked up.")
    ] = "",
    as_json: JsonFlag = False,
) -> None:
    """Send arrays through a model, on the node that serves it."""
    from dovetail.cli.output import print_json, say

    given = [read_arrays(item) for item in inputs]
    with connected(ctx, inference=server or None) as client:
        specs = client.signature(model, version)
        named = name_inputs(given, specs)
        check_inputs(named, specs)
        results = client.infer(model, named, version=version)
    if output is not None:
        write_arrays(output, results)
        say(f"{', '.join(results)} written to {output}")
    if as_json:
        print_json({"model": model, "outputs": [_document(name, array) for name, array in results.items()]})
    elif output is None:
        _show(results)


def read_arrays(argument: str) -> dict[str, Array]:
    """Arrays of one --input: by name, or under "" if the file does not say which input it is for.

    Raises:
        InvalidInputError: The file is missing or no array file.
    """
    import numpy as np

    name, separator, file = argument.rpartition("=")
    path = Path(file if separator else argument)
    try:
        # numpy's text would recommend to allow pickles
        with telling_damage(lambda _: _no_arrays(path)), path.open("rb") as opened:
            loaded = np.load(opened, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                return {name: loaded}
            with loaded:
                found = {key: loaded[key] for key in loaded.files}
    except OSError as exc:
        raise InvalidInputError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    if not name:
        return found
    if len(found) != 1:
        raise InvalidInputError(f"{path} holds {', '.join(found)}: leave out {name}=, its arrays have their own names")
    return {name: next(iter(found.values()))}


def _no_arrays(path: Path) -> InvalidInputError:
    return InvalidInputError(
        f"{path} is not an array file (.npy or .npz without objects), or it is truncated; write it with numpy.save"
        " or numpy.savez, from an array of numbers or texts"
    )


def name_inputs(given: Sequence[Mapping[str, Array]], specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """All arrays by input name; an array without one goes to the model's only input.

    Raises:
        InvalidInputError: A name is given twice, or an array without name meets a model with several inputs.
    """
    named: dict[str, Array] = {}
    for arrays in given:
        for name, array in arrays.items():
            if not name and len(specs) != 1:
                wanted = ", ".join(spec.name for spec in specs) or "none"
                raise InvalidInputError(f"the model has the inputs {wanted}: say which one with --input NAME=FILE")
            chosen = name or specs[0].name
            if chosen in named:
                raise InvalidInputError(f"input {chosen} is given twice")
            named[chosen] = array
    return named


def check_inputs(named: Mapping[str, Array], specs: Sequence[TensorSpec]) -> None:
    """Refuse names and dtypes that the model does not take, with the way to the right ones.

    Shapes and missing inputs are left to the node, which says the same about them as this could.

    Raises:
        InvalidInputError: As above.
    """
    from dovetail.tensor import NUMPY_DTYPES, datatype_of

    expected = {spec.name: spec.datatype for spec in specs}
    for name, array in named.items():
        if name not in expected:
            raise InvalidInputError(f"the model has no input {name!r}; its inputs are {', '.join(expected)}")
        wanted = expected[name]
        if wanted != "BF16" and datatype_of(array) != wanted:
            way = "texts" if wanted == "BYTES" else f"array.astype({NUMPY_DTYPES[wanted].name!r})"
            raise InvalidInputError(
                f"input {name} is an array of {array.dtype} ({datatype_of(array)}), the model takes {wanted}:"
                f" save {way}"
            )


def write_arrays(path: Path, results: Mapping[str, Array]) -> None:
    """Write outputs as .npy or .npz.

    Raises:
        InvalidInputError: .npy for several outputs, another ending, or the file cannot be written.
    """
    import numpy as np

    if path.suffix == ".npy" and len(results) != 1:
        raise InvalidInputError(f"{path} holds one array and the model has {', '.join(results)}: use .npz")
    if path.suffix not in (".npy", ".npz"):
        raise InvalidInputError(f"{path}: use a name that ends in .npy or .npz")
    try:
        if path.suffix == ".npy":
            np.save(path, next(iter(results.values())), allow_pickle=False)
        else:
            np.savez(path, **dict(results))  # type: ignore[arg-type]
    except OSError as exc:
        raise InvalidInputError(f"{path} cannot be written: {exc.strerror or exc}") from exc
    except ValueError as exc:
        raise InvalidInputError(f"{path} cannot be written: {exc}") from exc


def _document(name: str, array: Array) -> dict[str, object]:
    from dovetail.tensor import datatype_of

    data = [_json_value(item) for item in array.ravel().tolist()]
    return {"name": name, "datatype": datatype_of(array), "shape": list(array.shape), "data": data}


def _json_value(item: object) -> object:
    """JSON has no NaN and no infinity: they are the texts that protobuf's JSON form uses."""
    if isinstance(item, bytes):
        return item.decode("utf-8", "replace")
    if isinstance(item, float) and not math.isfinite(item):
        return "NaN" if math.isnan(item) else "Infinity" if item > 0 else "-Infinity"
    return item


def _show(results: Mapping[str, Array]) -> None:
    import numpy as np

    from dovetail.cli.output import data_console, plain, shape_text

    console = data_console()
    for name, array in results.items():
        console.print(plain(f"{name} {array.dtype} {shape_text(array.shape)}"), style="bold")
        console.print(plain(np.array2string(array, precision=4, suppress_small=True, threshold=200)))
