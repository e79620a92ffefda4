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
from compiler_svc.worker.emulation.tensor_file import read_runs, write_runs
from dovetail.cli.infer import read_arrays as read_inputs
from dovetail.engines.goldens import Golden, Goldens, read_goldens, write_goldens
from dovetail.errors import InvalidInputError
from dovetail.tensor import TensorSpec
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


def repacked(path: Path, method: int) -> Path:
    """The same members, packed like that."""
    with zipfile.ZipFile(path) as packed:
        members = [(item.filename, packed.read(item)) for item in packed.infolist()]
    with zipfile.ZipFile(path, "w", method) as packed:
        for name, content in members:
            packed.writestr(name, content)
    return path


DAMAGES = [
    *((damage, method) for damage in (truncated, unknown_method, encrypted) for method in METHODS),
    *((scribbled, method) for method in METHODS[1:]),  # stored ones are mapped as they are
]
X = TensorSpec("x", "FP32", (-1, 64))
RUN = {"x": np.zeros((1, 64), np.float32)}


@pytest.mark.parametrize(("damage", "method"), DAMAGES)
def test_goldens_and_runs_of_an_emulated_process_that_are_damaged_are_refused(
    tmp_path: Path, method: int, damage: Callable[[Path], Path]
) -> None:
    goldens, runs = tmp_path / "goldens", tmp_path / "runs"
    write_goldens(goldens, Goldens("fp32", (X,), (X,), (Golden(RUN, RUN),)))
    write_runs(runs, [RUN], [X])
    assert len(read_goldens(repacked(goldens, method)).runs) == len(read_runs(repacked(runs, method), [X])) == 1

    with pytest.raises(InvalidInputError, match="not readable"):
        read_goldens(damage(goldens))
    with pytest.raises(InvalidInputError, match="not readable"):
        read_runs(damage(runs), [X])


@pytest.mark.parametrize(("damage", "method"), DAMAGES)
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
