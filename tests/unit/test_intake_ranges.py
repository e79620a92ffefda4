# SPDX-License-Identifier: Apache-2.0
"""Declared ranges of free dimensions: checked, spread to dimensions of one name, kept by samples, used for inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from compiler_svc.intake.declared_ranges import declared_ranges
from compiler_svc.intake.limits import ModelLimits
from compiler_svc.intake.model_intake import read_model
from compiler_svc.intake.samples import load_samples
from compiler_svc.intake.signature import signature
from compiler_svc.intake.synthetic import synthetic_feeds
from compiler_svc.upload import UploadLimits, check_header
from dovetail.errors import InvalidInputError, OverLimitError
from dovetail.pb.v1 import registry_pb2 as pb
from dovetail.ranges import DimRange, check_ranges
from dovetail.tensor import TensorSpec
from dovetail.wire import range_message, read_range
from tests.fakes.onnx_models import model_of, save

value = helper.make_tensor_value_info
TOKENS = DimRange("ids", 1, 1, 128, 512)
IDS = TensorSpec("ids", "INT64", (-1, -1))


def encoder() -> Any:
    """Two inputs whose second dimension has one name."""
    node = helper.make_node("Mul", ["ids", "mask"], ["y"])
    shape = ["batch", "tokens"]
    return model_of([node], [value("ids", 7, shape), value("mask", 7, shape)], [value("y", 7, shape)])


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ((0, 1, 2), "1 <= min <= usual <= max"),
        ((2, 1, 3), "1 <= min <= usual <= max"),
        ((1, 4, 3), "1 <= min <= usual <= max"),
        ((1, 0, 3), "1 <= min <= usual <= max"),
    ],
)
def test_sizes_must_be_in_order(sizes: tuple[int, int, int], text: str) -> None:
    with pytest.raises(InvalidInputError, match=f"range of input 'ids', axis 1 is .*{text}"):
        DimRange("ids", 1, *sizes)


def test_a_negative_axis_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="axis -1 is negative; count from 0"):
        DimRange("ids", -1, 1, 1, 1)


@pytest.mark.parametrize(
    ("ranges", "text"),
    [
        ([DimRange("words", 1, 1, 2, 3)], "input 'words', which the model does not have; it has ids, x"),
        ([DimRange("ids", 2, 1, 2, 3)], r"axis 2 of input 'ids', whose shape is \[-1, -1\]"),
        ([DimRange("x", 1, 1, 2, 3)], "axis 1 of input 'x', which is fixed at 4"),
        ([TOKENS, TOKENS], "axis 1 of input 'ids' has two ranges"),
    ],
)
def test_ranges_that_do_not_fit_the_signature_are_refused(ranges: list[DimRange], text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        check_ranges(ranges, [IDS, TensorSpec("x", "FP32", (-1, 4))])


def test_a_range_holds_for_every_dimension_of_that_name() -> None:
    model = encoder()
    inputs, _ = signature(model)

    assert declared_ranges(model, inputs, [TOKENS]) == (TOKENS, DimRange("mask", 1, 1, 128, 512))


def test_different_ranges_for_dimensions_of_one_name_are_refused() -> None:
    model = encoder()
    inputs, _ = signature(model)

    with pytest.raises(InvalidInputError, match="are both 'tokens' in the graph, but their declared ranges differ"):
        declared_ranges(model, inputs, [TOKENS, DimRange("mask", 1, 1, 64, 512)])


def test_intake_refuses_ranges_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()

    with pytest.raises(InvalidInputError, match="input 'words'"):
        read_model(
            save(encoder(), tmp_path / "m.onnx"), {}, ModelLimits(), tmp_path / "out",
            ranges=[DimRange("words", 0, 1, 1, 1)],
        )  # fmt: skip


def test_samples_must_keep_the_ranges(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", ids=np.zeros((3, 16), np.int64))
    within, beyond = DimRange("ids", 1, 8, 16, 16), DimRange("ids", 1, 32, 64, 128)

    samples = load_samples(tmp_path / "s.npz", [IDS], ModelLimits(), what="calibration", ranges=[within])

    assert samples.count == 3
    with pytest.raises(InvalidInputError, match=r"sample 0 of the calibration file has size 16 in axis 1 .* 32 to 128"):
        load_samples(tmp_path / "s.npz", [IDS], ModelLimits(), what="calibration", ranges=[beyond])


def test_samples_that_are_whole_inputs_are_held_against_ranges_by_their_own_axes(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", ids=np.zeros((3, 2, 16), np.int64))

    with pytest.raises(InvalidInputError, match="size 2 in axis 0"):
        load_samples(tmp_path / "s.npz", [IDS], ModelLimits(), what="x", ranges=[DimRange("ids", 0, 4, 4, 8)])


@pytest.mark.parametrize(("size", "tokens"), [("min", 1), ("usual", 128), ("max", 512)])
def test_made_up_inputs_have_the_declared_sizes(size: Any, tokens: int) -> None:
    feeds = synthetic_feeds([IDS], [TOKENS], count=2, size=size)

    assert [feed["ids"].shape for feed in feeds] == [(1, tokens)] * 2
    assert set(np.unique(feeds[0]["ids"])) <= {0, 1}


def test_made_up_inputs_fit_every_datatype_and_are_the_same_each_time() -> None:
    inputs = [
        TensorSpec(name, name, (-1, -1, 3)) for name in ("BOOL", "UINT8", "INT64", "FP16", "FP64", "BF16", "BYTES")
    ]

    first, second = (synthetic_feeds(inputs, count=1)[0] for _ in range(2))

    for spec in inputs:
        assert spec.accepts(first[spec.name].shape)
        assert np.array_equal(first[spec.name], second[spec.name])


def test_ranges_survive_the_wire_and_json() -> None:
    assert read_range(range_message(TOKENS)) == TOKENS
    assert DimRange.from_json(TOKENS.to_json()) == TOKENS


def header(*ranges: pb.DimRange) -> pb.PushHeader:
    file = pb.PushFile(role=pb.FILE_ROLE_MODEL, name="m.onnx", size_bytes=1, sha256="0" * 64)
    return pb.PushHeader(name="m", files=[file], ranges=ranges)


def test_a_push_with_impossible_ranges_is_refused_before_its_files_arrive() -> None:
    good = range_message(TOKENS)

    check_header(header(good), UploadLimits())
    with pytest.raises(InvalidInputError, match="1 <= min <= usual <= max"):
        check_header(header(pb.DimRange(input="ids", axis=1, min=4, usual=2, max=3)), UploadLimits())
    with pytest.raises(InvalidInputError, match="name of the input is too long"):
        check_header(header(pb.DimRange(input="i" * 600, axis=1, min=1, usual=1, max=1)), UploadLimits())
    with pytest.raises(OverLimitError, match="2 declared ranges, at most 1"):
        check_header(header(good, good), UploadLimits(ranges=1))
