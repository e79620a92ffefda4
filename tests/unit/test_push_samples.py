# SPDX-License-Identifier: Apache-2.0
"""Samples in the forms that users have them: files, folders and iterables become one .npz, and never stay in memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dovetail.client.samples import sample_file
from dovetail.errors import InvalidInputError
from dovetail.tensor import Array


def loaded(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def test_an_npz_is_sent_as_it_is(tmp_path: Path) -> None:
    np.savez(tmp_path / "given.npz", image=np.zeros(3))

    assert sample_file(tmp_path / "given.npz", tmp_path / "new.npz", what="calibration") == tmp_path / "given.npz"
    assert not (tmp_path / "new.npz").exists()


def test_a_folder_of_arrays_becomes_one_npz(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    image, label = np.arange(24.0).reshape(4, 6), np.arange(4)
    np.save(folder / "image.npy", image)
    np.save(folder / "label.npy", label)
    (folder / "README.txt").write_text("not an array")

    arrays = loaded(sample_file(folder, tmp_path / "new.npz", what="validation"))

    assert sorted(arrays) == ["image", "label"]
    assert np.array_equal(arrays["image"], image)
    assert np.array_equal(arrays["label"], label)


def test_samples_that_come_one_by_one_become_one_npz_and_leave_nothing_else(tmp_path: Path) -> None:
    rows = [np.full((1, 2), number, np.float32) for number in range(12)]
    samples = ({"x/ids:0": row, "label": np.int64(number)} for number, row in enumerate(rows))

    arrays = loaded(sample_file(samples, tmp_path / "new.npz", what="calibration"))

    assert arrays["x/ids:0"].shape == (12, 1, 2)
    assert arrays["x/ids:0"].dtype == np.float32
    assert arrays["label"].tolist() == list(range(12))
    assert [path.name for path in tmp_path.iterdir()] == ["new.npz"]


def test_an_iterable_is_never_held_as_a_whole(tmp_path: Path) -> None:
    def many() -> Iterator[dict[str, Array]]:
        for _ in range(64):
            yield {"image": np.zeros(1 << 17)}  # 1 MiB each

    tracemalloc.start()
    try:
        path = sample_file(many(), tmp_path / "new.npz", what="calibration")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert path.stat().st_size > 64 << 20
    assert peak < 8 << 20


def test_a_folder_is_never_held_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    np.save(folder / "image.npy", np.zeros((32, 1 << 17)))

    tracemalloc.start()
    try:
        sample_file(folder, tmp_path / "new.npz", what="calibration")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 4 << 20


@pytest.mark.parametrize(
    ("samples", "text"),
    [
        ([], "the calibration samples are empty"),
        ([{"x": np.zeros(2)}, {"y": np.zeros(2)}], "sample 1 has the arrays y; the first has x"),
        (
            [{"x": np.zeros(2)}, {"x": np.zeros(3)}],
            "sample 1: array 'x' is float64 [3]; the first sample's is float64 [2]",
        ),
        ([{"x": np.zeros(2)}, {"x": np.zeros(2, np.float32)}], "sample 1: array 'x' is float32 [2]"),
        ([{"x": np.array(["text"])}], "has no fixed size; write an .npz instead"),
        ([{"x": np.array([{}], dtype=object)}], "has no fixed size"),
    ],
)
def test_samples_that_do_not_fit_one_another_are_refused(
    tmp_path: Path, samples: list[dict[str, Array]], text: str
) -> None:
    with pytest.raises(InvalidInputError) as refused:
        sample_file(samples, tmp_path / "new.npz", what="calibration")

    assert text in str(refused.value)


def test_a_folder_without_arrays_a_broken_array_and_pickled_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"holds no \.npy file"):
        sample_file(tmp_path, tmp_path / "new.npz", what="calibration")

    (tmp_path / "x.npy").write_bytes(b"nothing")
    with pytest.raises(InvalidInputError, match=r"x\.npy is not a readable \.npy"):
        sample_file(tmp_path, tmp_path / "new.npz", what="calibration")

    np.save(tmp_path / "x.npy", np.array([{}], dtype=object))
    with pytest.raises(InvalidInputError, match="holds Python objects"):
        sample_file(tmp_path, tmp_path / "new.npz", what="calibration")

    with pytest.raises(InvalidInputError, match="neither a file nor a folder"):
        sample_file(tmp_path / "nothing", tmp_path / "new.npz", what="calibration")
