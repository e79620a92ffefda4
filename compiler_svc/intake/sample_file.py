# SPDX-License-Identifier: Apache-2.0
"""Reads the arrays of a hostile .npz, each at most once into memory.

Arrays that are stored as they are, which `numpy.savez` does, are mapped from the file: the kernel reads what is used
and forgets it when memory is short. Compressed ones are unpacked into one array each. Pickled objects are never read,
and nothing is allocated by a size that the file merely declares.

Source: APPNOTE.TXT 6.3.10, 4.3.7 (local file header); NumPy, `numpy.lib.format` (the .npy header).
"""

from __future__ import annotations

import mmap
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compiler_svc.intake.limits import ModelLimits
from dovetail.errors import InvalidInputError, OverLimitError
from dovetail.tensor import Array, element_count
from dovetail.zip_damage import telling_damage

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_LOCAL_MAGIC = b"PK\x03\x04"


def read_arrays(path: Path, wanted: Sequence[str], limits: ModelLimits, what: str) -> dict[str, Array]:
    """The wanted arrays that the file has; writing to them does not change the file.

    Args:
        path: The .npz file; mapped arrays need it for as long as they live.
        wanted: Names.
        limits: `sample_bytes` bounds the arrays together.
        what: "calibration" or "validation", for messages.

    Raises:
        InvalidInputError: Not an .npz, or an array is damaged or holds Python objects.
        OverLimitError: It unpacks to too many bytes.
    """
    with telling_damage(lambda _: _unreadable(what)), zipfile.ZipFile(path) as archive:
        members = {item.filename: item for item in archive.infolist()}
        present = [name for name in wanted if f"{name}.npy" in members]
        unpacked = sum(members[f"{name}.npy"].file_size for name in present)
        if unpacked > limits.sample_bytes:
            raise OverLimitError(
                f"the {what} file unpacks to {unpacked} bytes, the limit of this service is {limits.sample_bytes}"
            )
        return {name: _read_member(path, archive, members[f"{name}.npy"], name, what) for name in present}


def _unreadable(what: str) -> InvalidInputError:
    return InvalidInputError(f"the {what} file is not a readable .npz: write it with numpy.savez")


def _read_member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, what: str) -> Array:
    try:
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = read_header(file)
            header_bytes = file.tell()
        if dtype.hasobject:
            raise InvalidInputError(f"array {name!r} of the {what} file holds Python objects, which are never read")
        if element_count(shape) * dtype.itemsize > member.file_size - header_bytes:
            raise InvalidInputError(f"array {name!r} of the {what} file is truncated")
        if member.compress_type == zipfile.ZIP_STORED and element_count(shape) * dtype.itemsize >= mmap.PAGESIZE:
            return _mapped(path, _data_offset(path, member) + header_bytes, shape, fortran, dtype)
        with archive.open(member) as file:
            array: Array = np.lib.format.read_array(file, allow_pickle=False)
            return array
    except (ValueError, OSError, zipfile.BadZipFile) as exc:
        raise InvalidInputError(f"array {name!r} of the {what} file cannot be read: {str(exc)[:200]}") from exc


def _data_offset(path: Path, member: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin; its local header has lengths of its own."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(_LOCAL_MAGIC):
        raise zipfile.BadZipFile("a local header is missing")
    *_, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
    return int(member.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes)


def _mapped(path: Path, offset: int, shape: tuple[int, ...], fortran: bool, dtype: np.dtype[Any]) -> Array:
    """A private mapping: whoever writes to it gets a copy of the page. Raises ValueError past the file's end."""
    mapped = np.memmap(path, dtype=dtype, mode="c", offset=offset, shape=shape, order="F" if fortran else "C")
    return mapped.view(np.ndarray)
