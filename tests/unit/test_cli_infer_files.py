# SPDX-License-Identifier: Apache-2.0
"""Arrays from and to files, as `dovetail infer` takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dovetail.cli.infer import check_inputs, name_inputs, read_arrays, write_arrays
from dovetail.errors import InvalidInputError
from dovetail.tensor import Array, TensorSpec

ONE = (TensorSpec("image", "FP32", (-1, 2)),)
TWO = (*ONE, TensorSpec("mask", "BOOL", (-1,)))


def test_a_named_file_keeps_its_name_and_an_archive_brings_its_own(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones(2))
    np.savez(tmp_path / "both.npz", a=np.zeros(1), b=np.ones(1))

    assert list(read_arrays(str(tmp_path / "x.npy"))) == [""]
    assert list(read_arrays(f"image={tmp_path / 'x.npy'}")) == ["image"]
    assert list(read_arrays(str(tmp_path / "both.npz"))) == ["a", "b"]


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)

    with pytest.raises(InvalidInputError, match="without objects"):
        read_arrays(str(tmp_path / "x.npy"))


def test_a_file_that_holds_no_array_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_text("hello")

    with pytest.raises(InvalidInputError, match=r"x\.npy is not an array file"):
        read_arrays(str(tmp_path / "x.npy"))


def test_an_unnamed_array_goes_to_the_only_input_and_nowhere_else() -> None:
    array = np.ones(2)

    assert name_inputs([{"": array}], ONE) == {"image": array}
    with pytest.raises(InvalidInputError, match="image, mask: say which one"):
        name_inputs([{"": array}], TWO)


def test_an_input_given_twice_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="image is given twice"):
        name_inputs([{"image": np.ones(1)}, {"": np.ones(1)}], ONE)


def test_outputs_are_written_in_the_form_that_the_name_says(tmp_path: Path) -> None:
    results = {"a": np.ones(2, np.float32), "b": np.zeros(1, np.int64)}

    write_arrays(tmp_path / "y.npz", results)

    with np.load(tmp_path / "y.npz") as written:
        assert sorted(written.files) == ["a", "b"]
    with pytest.raises(InvalidInputError, match=r"use \.npz"):
        write_arrays(tmp_path / "y.npy", results)
    with pytest.raises(InvalidInputError, match=r"\.npy or \.npz"):
        write_arrays(tmp_path / "y.txt", results)


@pytest.mark.parametrize(
    ("named", "text"),
    [
        ({"picture": np.ones(2, np.float32)}, "no input 'picture'; its inputs are image, mask"),
        ({"image": np.ones(2)}, r"array of float64 \(FP64\), the model takes FP32: save array.astype\('float32'\)"),
        ({"image": np.ones(2, np.int64)}, "array of int64"),
        ({"mask": np.array(["a"])}, r"\(BYTES\), the model takes BOOL"),
    ],
)
def test_names_and_dtypes_that_the_model_does_not_take_are_told_with_the_right_ones(
    named: dict[str, Array], text: str
) -> None:
    with pytest.raises(InvalidInputError, match=text):
        check_inputs(named, TWO)


def test_what_the_model_takes_passes() -> None:
    check_inputs({"image": np.ones(2, np.float32), "mask": np.ones(1, bool)}, TWO)


def test_a_pickle_is_never_recommended(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_text("hello")

    with pytest.raises(InvalidInputError, match="write it with numpy") as caught:
        read_arrays(str(tmp_path / "x.npy"))

    assert "allow_pickle" not in str(caught.value)


def test_a_result_that_cannot_be_written_is_told_by_its_name_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"y\.npy cannot be written: No such file or directory$"):
        write_arrays(tmp_path / "missing" / "y.npy", {"y": np.ones(1)})
