# SPDX-License-Identifier: Apache-2.0
"""Calibration and validation samples in the forms that users have them, turned into the one .npz that a push sends.

A set of samples is one of

* an .npz with one array for each input (and one of labels), first axis is the sample;
* a folder with one .npy for each input, named after it (`image.npy`), and one of labels (`label.npy`);
* in code, an iterable of mappings name -> array, one mapping for each sample.

No form is ever held in memory as a whole: a folder is copied file by file into an uncompressed .npz, an iterable is
appended to one file per array as it comes. What the samples must fit is the service's business.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dovetail.errors import InvalidInputError
from dovetail.tensor import Array

Sample = Mapping[str, Array]
"""Input name -> array, as the model takes it or without its leading 1; labels under the label array's name."""

Samples = Path | Iterable[Sample]
"""A file, a folder, or samples one after the other."""


def sample_file(samples: Samples, into: Path, *, what: str) -> Path:
    """The .npz that holds these samples: the given file itself, or a new one. Blocks, and runs the caller's iterable.

    Args:
        samples: In one of the forms above.
        into: File to write if one is needed; the arrays lie beside it for a while.
        what: "calibration" or "validation", for messages.

    Raises:
        InvalidInputError: No such file, a folder without .npy files, or samples that do not fit one another.
    """
    if not isinstance(samples, Path):
        return write_samples(samples, into, what=what)
    if samples.is_dir():
        return pack_folder(samples, into, what=what)
    if not samples.is_file():
        raise InvalidInputError(f"{what}: {samples} is neither a file nor a folder")
    return samples


def pack_folder(folder: Path, into: Path, *, what: str) -> Path:
    """An .npz of a folder's .npy files.

    Raises:
        InvalidInputError: There are none, or one is not a readable .npy without Python objects.
    """
    arrays = sorted(folder.glob("*.npy"))
    if not arrays:
        raise InvalidInputError(
            f"{what}: folder {folder.name!r} holds no .npy file; expected one for each input, named after it"
        )
    for path in arrays:
        _check_npy(path, what)
    _pack({path.stem: path for path in arrays}, into)
    return into


def write_samples(samples: Iterable[Sample], into: Path, *, what: str) -> Path:
    """An .npz of samples that come one after the other; only one is held at a time.

    Raises:
        InvalidInputError: There is none, or one has other names, shapes or dtypes than the first.
    """
    columns: dict[str, _Column] = {}
    with ExitStack() as stack:
        for index, sample in enumerate(samples):
            arrays = {name: np.asarray(value) for name, value in sample.items()}
            if not columns:
                columns = {
                    name: _Column(name, array, stack.enter_context(_column_path(into, number).open("w+b")))
                    for number, (name, array) in enumerate(arrays.items())
                }
            if arrays.keys() != columns.keys():
                raise InvalidInputError(
                    f"{what} sample {index} has the arrays {', '.join(arrays)}; the first has {', '.join(columns)}"
                )
            for name, array in arrays.items():
                columns[name].append(array, f"{what} sample {index}")
        if not columns:
            raise InvalidInputError(f"the {what} samples are empty")
        for column in columns.values():
            column.finish()
    paths = {name: _column_path(into, number) for number, name in enumerate(columns)}
    _pack(paths, into)
    for path in paths.values():
        path.unlink()
    return into


class _Column:
    """One array that grows by a row for each sample, as an .npy file whose header is written last."""

    def __init__(self, name: str, first: Array, file: BinaryIO) -> None:
        if first.dtype.kind not in "biuf":
            raise InvalidInputError(
                f"array {name!r} of the samples has dtype {first.dtype}, which has no fixed size; write an .npz instead"
            )
        self._name = name
        self._dtype = first.dtype
        self._shape = first.shape
        self._file = file
        self._count = 0
        file.write(self._header(0))

    def append(self, array: Array, where: str) -> None:
        """Add a row."""
        if array.shape != self._shape or array.dtype != self._dtype:
            raise InvalidInputError(
                f"{where}: array {self._name!r} is {array.dtype} {list(array.shape)}; the first sample's is"
                f" {self._dtype} {list(self._shape)}, and all must be alike"
            )
        self._file.write(array.tobytes())
        self._count += 1

    def finish(self) -> None:
        """Write the header anew, now that the number of rows is known; numpy leaves room for it to grow."""
        self._file.seek(0)
        self._file.write(self._header(self._count))
        self._file.flush()

    def _header(self, count: int) -> bytes:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header,
            {
                "descr": np.lib.format.dtype_to_descr(self._dtype),
                "fortran_order": False,
                "shape": (count, *self._shape),
            },
        )
        return header.getvalue()


def _column_path(into: Path, number: int) -> Path:
    return into.with_name(f"{into.stem}-{number}.npy")


def _pack(arrays: Mapping[str, Path], into: Path) -> None:
    """Copy .npy files into an uncompressed .npz."""
    with zipfile.ZipFile(into, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
        for name, path in arrays.items():
            archive.write(path, f"{name}.npy")


def _check_npy(path: Path, what: str) -> None:
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            _, _, dtype = read(file)
    except (OSError, ValueError) as exc:
        raise InvalidInputError(
            f"{what}: {path.name} is not a readable .npy file: write it with numpy.save ({str(exc)[:200]})"
        ) from exc
    if dtype.hasobject:
        raise InvalidInputError(f"{what}: {path.name} holds Python objects, which are never read")
