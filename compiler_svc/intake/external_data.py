# SPDX-License-Identifier: Apache-2.0
"""Packs external tensor data into the model, and refuses every way out of the pushed set of files.

An ONNX file may say "these weights are at this path". Reading such paths was the source of a row of file disclosures,
each a hole in the check before (CVE-2022-25882, CVE-2024-27318, CVE-2026-34446: `..`, symbolic links, hard links). So
nothing here ever builds a path from the model's text: a location is only a key into the files that came with the push,
and those are opened without following links. Sparse tensors with external data are refused.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

import onnx

from compiler_svc.intake import graph
from compiler_svc.intake.limits import ModelLimits
from dovetail.errors import InvalidInputError, OverLimitError

_FOUR_BIT = {
    value for name in ("INT4", "UINT4", "FLOAT4E2M1") if (value := getattr(onnx.TensorProto, name, None)) is not None
}
_TWO_BIT = {value for name in ("INT2", "UINT2") if (value := getattr(onnx.TensorProto, name, None)) is not None}


def pack_external_data(model: Any, files: Mapping[str, Path], limits: ModelLimits) -> int:
    """Replace every external reference by the bytes themselves, in place.

    Args:
        model: Parsed model whose sizes were checked.
        files: Location as the model spells it -> file that was pushed under that name.
        limits: `external_bytes` bounds the sum.

    Returns:
        How many tensors were packed.

    Raises:
        InvalidInputError: A location leaves the pushed set, is missing, is a link, or its range does not fit.
        OverLimitError: The data is larger than allowed.
    """
    _refuse_sparse(model)
    packed = total = 0
    for tensor in graph.tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        size = stored_bytes(tensor)
        total += size
        if total > limits.external_bytes:
            raise OverLimitError(
                f"external data is larger than {limits.external_bytes} bytes, the limit of this service"
            )
        with open_range(tensor, files) as file:
            raw = file.read(size)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.raw_data = raw
        packed += 1
    return packed


@contextmanager
def open_range(tensor: Any, files: Mapping[str, Path]) -> Iterator[BinaryIO]:
    """The pushed file that holds a tensor's data, positioned at its first byte; `stored_bytes(tensor)` of it are there.

    Raises:
        InvalidInputError: As `pack_external_data` says.
    """
    reference = {entry.key: entry.value for entry in tensor.external_data}
    location = _checked_location(tensor.name, reference.get("location", ""), files)
    with _open_pushed(files[location], location) as file:
        _seek_range(file, tensor.name, location, reference, stored_bytes(tensor))
        yield file


def unused_files(model: Any, files: Mapping[str, Path]) -> tuple[str, ...]:
    """Pushed files that no tensor names, sorted; to be asked before the references are replaced."""
    named = {
        entry.value
        for tensor in graph.tensors(model)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return tuple(sorted(files.keys() - named))


def _refuse_sparse(model: Any) -> None:
    for item in graph.sparse_tensors(model):
        if onnx.TensorProto.EXTERNAL in (item.values.data_location, item.indices.data_location):
            raise InvalidInputError(f"sparse tensor {item.values.name!r} has external data; store it inside the model")


def _checked_location(tensor: str, location: str, files: Mapping[str, Path]) -> str:
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    outside = (
        not location
        or "\0" in location
        or posix.is_absolute()
        or windows.drive
        or windows.root
        or ".." in posix.parts
        or ".." in windows.parts
    )
    if outside:
        raise InvalidInputError(
            f"external data of tensor {tensor!r} is at {location[:200]!r}, which is not inside the model's folder;"
            " save the model again with its data beside it"
        )
    if location not in files:
        raise InvalidInputError(
            f"external data file {location[:200]!r} of tensor {tensor!r} was not pushed; push it with the model"
            " (--external-data FILE)"
        )
    return location


def _open_pushed(path: Path, location: str) -> BinaryIO:
    """Open a pushed file without following links; the checks are on the open descriptor, so nothing can be swapped."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise InvalidInputError(f"external data file {location[:200]!r} is a link or cannot be opened") from exc
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
        os.close(descriptor)
        raise InvalidInputError(
            f"external data file {location[:200]!r} is not a plain file with a single name (hard link?)"
        )
    return os.fdopen(descriptor, "rb")


def _seek_range(file: BinaryIO, tensor: str, location: str, reference: Mapping[str, str], size: int) -> None:
    available = os.fstat(file.fileno()).st_size
    try:
        offset = int(reference.get("offset", "0"))
        length = int(reference.get("length", str(size)))
    except ValueError as exc:
        raise InvalidInputError(
            f"external data of tensor {tensor!r} has an offset or length that is no number"
        ) from exc
    if length != size:
        raise InvalidInputError(
            f"external data of tensor {tensor!r} has {length} bytes, its shape and type need {size}"
        )
    if offset < 0 or offset + length > available:
        raise InvalidInputError(
            f"external data of tensor {tensor!r} is at {offset} to {offset + length} of {location[:200]!r},"
            f" which has {available} bytes; the file is truncated or belongs to another model"
        )
    file.seek(offset)


def stored_bytes(tensor: Any) -> int:
    """Bytes that a tensor's values take in raw form.

    Raises:
        InvalidInputError: Its type has no raw form, or is unknown.
    """
    elements = 1
    for dim in tensor.dims:
        elements *= dim
    if tensor.data_type in _FOUR_BIT:
        return (elements + 1) // 2
    if tensor.data_type in _TWO_BIT:
        return (elements + 3) // 4
    if tensor.data_type == onnx.TensorProto.STRING:
        raise InvalidInputError(f"text tensor {tensor.name!r} has raw or external data, which ONNX does not allow")
    try:
        return elements * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, TypeError, ValueError) as exc:
        raise InvalidInputError(f"tensor {tensor.name!r} has the unknown data type {tensor.data_type}") from exc
