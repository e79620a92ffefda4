# SPDX-License-Identifier: Apache-2.0
"""Sample files: held against the signature, limited, never unpickled, and never shared between building and judging."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler_svc.backends.base import sample_feeds
from compiler_svc.intake.limits import ModelLimits
from compiler_svc.intake.samples import SampleSet, load_samples, refuse_impossible_labels, refuse_overlap
from dovetail.errors import InvalidInputError, OverLimitError
from dovetail.tensor import TensorSpec
from tests.fakes.onnx_models import images

IMAGE = TensorSpec("image", "FP32", (-1, 1, 8, 8))


def load(tmp_path: Path, spec: TensorSpec = IMAGE, limits: ModelLimits | None = None, **arrays: Any) -> SampleSet:
    path = tmp_path / "samples.npz"
    np.savez(path, **arrays)
    return load_samples(path, [spec], limits or ModelLimits(), what="validation", label_array="label")


def test_samples_with_labels_are_read(tmp_path: Path) -> None:
    samples = load(tmp_path, image=images(5), label=np.arange(5, dtype=np.uint8), extra=np.zeros(3))

    assert samples.count == 5
    assert set(samples.arrays) == {"image"}
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 1, 2, 3, 4]
    assert len(set(samples.digests)) == 5


def test_labels_are_optional(tmp_path: Path) -> None:
    assert load(tmp_path, image=images(2)).labels is None


def test_digest_depends_on_content_order_and_labels_but_not_on_compression(tmp_path: Path) -> None:
    array = images(4)
    plain = load(tmp_path, image=array).digest
    np.savez_compressed(tmp_path / "packed.npz", image=array)
    packed = load_samples(tmp_path / "packed.npz", [IMAGE], ModelLimits(), what="validation").digest

    assert plain == packed
    assert plain != load(tmp_path, image=array[::-1]).digest
    assert plain != load(tmp_path, image=array, label=np.zeros(4, np.int64)).digest


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"picture": images(2)}, "no array 'image'"),
        ({"image": images(2).astype(np.float64)}, "dtype float64; the input is FP32"),
        ({"image": images(2)[:, :, :7]}, "shape \\[2, 1, 7, 8\\]; the input is \\[-1, 1, 8, 8\\]"),
        ({"image": images(2)[:0]}, "holds no sample"),
        ({"image": images(2), "label": np.zeros(3, np.int64)}, "one integer for each"),
        ({"image": images(2), "label": np.zeros(2)}, "one integer for each"),
        ({"image": np.full((1, 1, 8, 8), np.nan, np.float32)}, "NaN or infinite"),
        ({"image": np.array([{}], dtype=object)}, "Python objects, which are never read"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        load(tmp_path, **arrays)


def test_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"not a zip file")

    with pytest.raises(InvalidInputError, match=r"not a readable \.npz"):
        load_samples(tmp_path / "x.npz", [IMAGE], ModelLimits(), what="calibration")


def test_file_that_unpacks_to_too_much_is_refused_before_reading(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", image=np.zeros((4000, 1, 8, 8), np.float32))
    assert (tmp_path / "bomb.npz").stat().st_size < 10_000

    with pytest.raises(OverLimitError, match="the limit of this service is 10000"):
        load_samples(tmp_path / "bomb.npz", [IMAGE], ModelLimits(sample_bytes=10_000), what="calibration")


def test_array_that_declares_more_than_it_holds_allocates_nothing(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 1, 8, 8)})
    with zipfile.ZipFile(tmp_path / "lie.npz", "w") as archive:
        archive.writestr("image.npy", header.getvalue() + b"\0" * 64)

    with pytest.raises(InvalidInputError, match="truncated"):
        load_samples(tmp_path / "lie.npz", [IMAGE], ModelLimits(), what="calibration")


def test_too_many_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OverLimitError, match="holds 5 samples"):
        load(tmp_path, limits=ModelLimits(samples=4), image=images(5))


def test_overlap_of_calibration_and_validation_is_refused_with_an_example(tmp_path: Path) -> None:
    calibration = load(tmp_path, image=images(6))
    validation = load(tmp_path, image=np.concatenate([images(3, seed=9), images(6)[4:]]))

    refuse_overlap(calibration, load(tmp_path, image=images(6, seed=2)))
    with pytest.raises(InvalidInputError, match=r"2 of 6 calibration samples .* \(calibration 4 is validation 3\)"):
        refuse_overlap(calibration, validation)


def test_text_samples_become_bytes(tmp_path: Path) -> None:
    samples = load(tmp_path, TensorSpec("t", "BYTES", (-1,)), t=np.array(["a", "é"]))

    assert list(samples.arrays["t"]) == [b"a", "é".encode()]


def test_rows_and_whole_inputs_are_told_apart_by_rank(tmp_path: Path) -> None:
    rows = load(tmp_path, image=images(3))
    fixed = TensorSpec("x", "FP32", (4, 2))
    whole = load(tmp_path, fixed, x=np.zeros((3, 4, 2), np.float32))

    assert [feed["image"].shape for feed in sample_feeds(rows.arrays, [IMAGE])] == [(1, 1, 8, 8)] * 3
    assert [feed["x"].shape for feed in sample_feeds(whole.arrays, [fixed])] == [(4, 2)] * 3
    with pytest.raises(InvalidInputError, match=r"an array of samples is \[samples, 4, 2\]"):
        load(tmp_path, fixed, x=np.zeros((4, 2), np.float32))


def test_a_limit_takes_evenly_spaced_samples() -> None:
    array = np.arange(10, dtype=np.float32).reshape(10, 1)
    spec = TensorSpec("x", "FP32", (-1, 1))

    chosen = [float(feed["x"][0, 0]) for feed in sample_feeds({"x": array}, [spec], limit=4)]

    assert chosen == [0.0, 2.0, 5.0, 7.0]


def test_a_label_array_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", image=images(2))

    with pytest.raises(InvalidInputError, match="no array 'class', which is named as its label array"):
        load_samples(
            tmp_path / "v.npz", [IMAGE], ModelLimits(), what="validation", label_array="class", labels_needed=True
        )


@pytest.mark.parametrize(
    ("labels", "output", "text"),
    [
        ([0, 10], TensorSpec("logits", "FP32", (-1, 10)), r"1 of 2 labels .* \(label 1 is 10\).* classes 0 to 9"),
        ([-1, 9], TensorSpec("logits", "FP32", (-1, 10)), r"\(label 0 is -1\)"),
        ([-1, 9], TensorSpec("logits", "FP32", (-1, -1)), "0 and larger"),
        ([0, 9], TensorSpec("logits", "FP32", (-1, 10)), ""),
        ([0, 99], TensorSpec("logits", "FP32", (-1, -1)), ""),
        ([-1, 99], TensorSpec("class", "INT64", (-1,)), ""),
    ],
)
def test_labels_that_are_no_class_of_the_model_are_refused(
    tmp_path: Path, labels: list[int], output: TensorSpec, text: str
) -> None:
    samples = load(tmp_path, image=images(2), label=np.array(labels))

    if not text:
        refuse_impossible_labels(samples, (output,))
        return
    with pytest.raises(InvalidInputError, match=text):
        refuse_impossible_labels(samples, (output,))


def test_uncompressed_samples_are_mapped_and_never_written_back(tmp_path: Path) -> None:
    array = images(32)
    samples = load(tmp_path, image=array)
    before = (tmp_path / "samples.npz").read_bytes()

    mapped = samples.arrays["image"]
    mapped[0] = 7

    assert is_mapped(mapped)
    assert np.array_equal(mapped[1:], array[1:])
    assert (tmp_path / "samples.npz").read_bytes() == before


def is_mapped(array: Any) -> bool:
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            return True
        array = array.base
    return False


def test_samples_in_column_order_mean_the_same(tmp_path: Path) -> None:
    array = images(32)

    rows, columns = load(tmp_path, image=array), load(tmp_path, image=np.asfortranarray(array))

    assert rows.digest == columns.digest
    assert np.array_equal(columns.arrays["image"], array)


def test_stored_array_whose_local_header_is_damaged_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", image=images(32))
    data = bytearray((tmp_path / "s.npz").read_bytes())
    data[:4] = b"nope"
    (tmp_path / "s.npz").write_bytes(bytes(data))

    with pytest.raises(InvalidInputError, match="cannot be read|not a readable"):
        load_samples(tmp_path / "s.npz", [IMAGE], ModelLimits(), what="calibration")
