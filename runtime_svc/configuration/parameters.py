# SPDX-License-Identifier: Apache-2.0
"""What Triton's model configuration has no field for: parameters that begin with `dovetail.`, read and written here.

    dovetail.allowed_batch_sizes   JSON list: sizes that batches are padded to
    dovetail.buckets               JSON object of axes, sizes, pad_values, output_axes (see `Buckets`)
    dovetail.split_oversize        true or false
    dovetail.optional_inputs       JSON list of inputs; the same as `optional` of an input
    dovetail.weight                share of the processor against other models, above 0; 1 is usual
    dovetail.threads, dovetail.max_queue_rows, dovetail.max_queue_bytes   whole numbers

Law: what `write_parameters` gives, `read_parameters` reads back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TypedDict

from dovetail.digest import read_json
from dovetail.errors import InvalidInputError
from runtime_svc.configuration.serving_config import Buckets, ServingConfig

PREFIX = "dovetail."
PYTHON_PREFIX = "dovetail.python."
"""How those begin that Python models read themselves."""

MAX_PARAMETERS = 1024
MAX_SIZES = 256
_MAX_LENGTH = 1 << 31
_MAX_COUNT = 1 << 40
_MAX_THREADS = 1024


class ParameterFields(TypedDict, total=False):
    """Fields of a ServingConfig that parameters say."""

    allowed_batch_sizes: tuple[int, ...]
    buckets: Buckets
    split_oversize: bool
    optional_inputs: frozenset[str]
    threads: int
    max_queue_rows: int
    max_queue_bytes: int
    weight: float
    parameters: Mapping[str, str]


def read_parameters(parameters: Mapping[str, str]) -> ParameterFields:
    """Fields of a serving configuration; other parameters stay the model's own.

    Raises:
        InvalidInputError: Names the parameter and what was expected.
    """
    if len(parameters) > MAX_PARAMETERS:
        raise InvalidInputError(f"parameters: {len(parameters)} are too many; the limit is {MAX_PARAMETERS}")
    fields = ParameterFields(parameters={name: text for name, text in parameters.items() if not _ours(name)})
    for name, text in parameters.items():
        if not _ours(name):
            continue
        read = _READERS.get(name.removeprefix(PREFIX))
        if read is None:
            known = ", ".join(PREFIX + each for each in _READERS)
            raise InvalidInputError(f"parameters: {name[:80]!r} is unknown; expected one of {known}")
        read(fields, text, f"parameters[{name!r}]")
    return fields


def write_parameters(config: ServingConfig) -> dict[str, str]:
    """The parameters that say what a configuration says, without those that say nothing."""
    written = dict(config.parameters)
    if config.allowed_batch_sizes:
        written[f"{PREFIX}allowed_batch_sizes"] = json.dumps(list(config.allowed_batch_sizes))
    if config.buckets is not None:
        written[f"{PREFIX}buckets"] = json.dumps(
            {
                "axes": dict(config.buckets.axes),
                "sizes": list(config.buckets.sizes),
                "pad_values": dict(config.buckets.pad_values),
                "output_axes": dict(config.buckets.output_axes),
            }
        )
    if config.split_oversize:
        written[f"{PREFIX}split_oversize"] = "true"
    if config.optional_inputs:
        written[f"{PREFIX}optional_inputs"] = json.dumps(sorted(config.optional_inputs))
    if config.weight != 1.0:
        written[f"{PREFIX}weight"] = repr(config.weight)
    for name, number in (
        ("threads", config.threads),
        ("max_queue_rows", config.max_queue_rows),
        ("max_queue_bytes", config.max_queue_bytes),
    ):
        if number:
            written[PREFIX + name] = str(number)
    return written


def _ours(name: str) -> bool:
    return name.startswith(PREFIX) and not name.startswith(PYTHON_PREFIX)


def _sizes(value: object, where: str) -> tuple[int, ...]:
    expected = f"{where}: expected a rising JSON list of 1 to {MAX_SIZES} whole numbers above 0, such as [1, 2, 4]"
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_SIZES:
        raise InvalidInputError(expected)
    if not all(_is_int(size) and 0 < size <= _MAX_LENGTH for size in value) or sorted(set(value)) != value:
        raise InvalidInputError(expected)
    return tuple(value)


def _numbers(value: object, where: str, allowed: Callable[[object], bool], expected: str) -> dict[str, int | float]:
    if not isinstance(value, dict) or not all(allowed(number) for number in value.values()):
        raise InvalidInputError(f"{where}: expected an object of names and {expected}")
    return dict(value)


def _read_sizes(fields: ParameterFields, text: str, where: str) -> None:
    fields["allowed_batch_sizes"] = _sizes(read_json(text.encode(), where), where)


def _read_buckets(fields: ParameterFields, text: str, where: str) -> None:
    value = read_json(text.encode(), where)
    known = {"axes", "sizes", "pad_values", "output_axes"}
    if not isinstance(value, dict) or not {"axes", "sizes"} <= value.keys() <= known:
        raise InvalidInputError(f"{where}: expected a JSON object of axes and sizes, and maybe pad_values, output_axes")
    axes = _numbers(value["axes"], f"{where}: axes", _is_axis, "axes, counted with the batch axis")
    if not axes:
        raise InvalidInputError(f"{where}: axes: expected at least one input")
    fields["buckets"] = Buckets(
        axes={name: int(axis) for name, axis in axes.items()},
        sizes=_sizes(value["sizes"], f"{where}: sizes"),
        pad_values=_numbers(value.get("pad_values", {}), f"{where}: pad_values", _is_number, "numbers"),
        output_axes={
            name: int(axis)
            for name, axis in _numbers(
                value.get("output_axes", {}), f"{where}: output_axes", _is_axis, "axes, counted with the batch axis"
            ).items()
        },
    )


def _read_split(fields: ParameterFields, text: str, where: str) -> None:
    if text not in ("true", "false"):
        raise InvalidInputError(f"{where}: expected true or false, got {text[:40]!r}")
    fields["split_oversize"] = text == "true"


def _read_optional(fields: ParameterFields, text: str, where: str) -> None:
    value = read_json(text.encode(), where)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InvalidInputError(f"{where}: expected a JSON list of inputs")
    fields["optional_inputs"] = frozenset(value)


def _whole(text: str, where: str, highest: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text) <= highest):
        raise InvalidInputError(f"{where}: expected a whole number from 0 to {highest}, got {text[:40]!r}")
    return int(text)


def _read_threads(fields: ParameterFields, text: str, where: str) -> None:
    fields["threads"] = _whole(text, where, _MAX_THREADS)


def _read_queue_rows(fields: ParameterFields, text: str, where: str) -> None:
    fields["max_queue_rows"] = _whole(text, where, _MAX_COUNT)


def _read_queue_bytes(fields: ParameterFields, text: str, where: str) -> None:
    fields["max_queue_bytes"] = _whole(text, where, _MAX_COUNT)


def _read_weight(fields: ParameterFields, text: str, where: str) -> None:
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not 0.001 <= weight <= 1000.0:
        raise InvalidInputError(f"{where}: expected a number from 0.001 to 1000, got {text[:40]!r}")
    fields["weight"] = weight


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_axis(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 64  # numpy has no more


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_READERS: Mapping[str, Callable[[ParameterFields, str, str], None]] = {
    "allowed_batch_sizes": _read_sizes,
    "buckets": _read_buckets,
    "split_oversize": _read_split,
    "optional_inputs": _read_optional,
    "threads": _read_threads,
    "max_queue_rows": _read_queue_rows,
    "max_queue_bytes": _read_queue_bytes,
    "weight": _read_weight,
}
