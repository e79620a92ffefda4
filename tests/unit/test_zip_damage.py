# SPDX-License-Identifier: Apache-2.0
"""Archives that are damaged in every way that Python's reader has another error for."""

from __future__ import annotations

import errno
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from compiler_svc.intake.limits import ModelLimits
from compiler_svc.intake.sample_file import read_arrays as read_samples
from dovetail.cli.infer import read_arrays as read_inputs
from dovetail.errors import InvalidInputError
from dovetail.zip_damage import telling_damage

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def archive(path: Path, method: int) -> Path:
    """An .npz with array `x`, packed like that."""
    data = io.BytesIO()
    np.save(data, np.arange(4096, dtype=np.int64))
    with zipfile.ZipFile(path, "w", method) as packed:
        packed.writestr("x.npy", data.getvalue())
    return path


def scribbled(path: Path) -> Path:
    """The middle of its only member overwritten."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as packed:
        size = packed.infolist()[0].compress_size
    middle = 40 + size // 2
    content[middle : middle + 16] = b"\xff" * 16
    path.write_bytes(content)
    return path


def truncated(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:200])
    return path


def unknown_method(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    content[8:10] = content[directory + 10 : directory + 12] = b"\x63\x00"
    path.write_bytes(content)
    return path


def encrypted(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("damage", "method"),
    [
        *((damage, method) for damage in (truncated, unknown_method, encrypted) for method in METHODS),
        *((scribbled, method) for method in METHODS[1:]),  # stored ones are mapped as they are
    ],
)
def test_readers_of_foreign_archives_say_that_they_are_damaged(
    tmp_path: Path, method: int, damage: Callable[[Path], Path]
) -> None:
    path = damage(archive(tmp_path / "samples.npz", method))

    with pytest.raises(InvalidInputError):
        read_samples(path, ["x"], ModelLimits(), "calibration")
    with pytest.raises(InvalidInputError):
        read_inputs(f"x={path}")


@pytest.mark.parametrize("method", METHODS)
def test_whole_archives_are_read(tmp_path: Path, method: int) -> None:
    path = archive(tmp_path / "samples.npz", method)

    assert read_samples(path, ["x"], ModelLimits(), "calibration")["x"].sum() == 4095 * 2048
    assert read_inputs(f"x={path}")["x"].sum() == 4095 * 2048


def test_the_disks_own_errors_are_not_taken_for_damage() -> None:
    with pytest.raises(OSError, match="No space left"), telling_damage(InvalidInputError):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(InvalidInputError, match="Invalid data stream"), telling_damage(InvalidInputError):
        raise OSError("Invalid data stream")
