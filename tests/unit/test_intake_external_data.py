# SPDX-License-Identifier: Apache-2.0
"""External tensor data: packed when it came with the push, refused by every known way out of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from compiler_svc.intake.external_data import pack_external_data
from compiler_svc.intake.limits import ModelLimits
from dovetail.errors import InvalidInputError, OverLimitError
from tests.fakes.onnx_models import model_of

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


def external_model(**reference: str) -> Any:
    value = helper.make_tensor_value_info
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[2, 3])
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, text in reference.items():
        weight.external_data.add(key=key, value=text)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return model_of([node], [value("x", 1, ["n", 2])], [value("y", 1, ["n", 3])], [weight])


@pytest.fixture
def pushed(tmp_path: Path) -> Mapping[str, Path]:
    path = tmp_path / "pushed-1"
    path.write_bytes(b"\xff" * 8 + VALUES.tobytes())
    return {"weights/w.bin": path}


def test_range_of_a_pushed_file_becomes_inline_data(pushed: Mapping[str, Path]) -> None:
    model = external_model(location="weights/w.bin", offset="8", length="24")

    packed = pack_external_data(model, pushed, ModelLimits())

    tensor = model.graph.initializer[0]
    assert packed == 1
    assert np.array_equal(numpy_helper.to_array(tensor), VALUES)
    assert not tensor.external_data
    assert tensor.data_location == onnx.TensorProto.DEFAULT


@pytest.mark.parametrize(
    "location",
    ["/etc/passwd", "../secret", "weights/../../secret", "C:\\secret", "\\\\host\\share", "..\\secret", "a\0b", ""],
)
def test_locations_outside_the_push_are_refused_even_if_such_a_file_was_pushed(
    pushed: Mapping[str, Path], location: str
) -> None:
    model = external_model(location=location)
    files = {**pushed, location: next(iter(pushed.values()))}

    with pytest.raises(InvalidInputError, match="not inside the model's folder"):
        pack_external_data(model, files, ModelLimits())


def test_missing_file_is_named_with_what_to_do(pushed: Mapping[str, Path]) -> None:
    with pytest.raises(InvalidInputError, match=r"'other.bin' of tensor 'w' was not pushed; push it with the model"):
        pack_external_data(external_model(location="other.bin"), pushed, ModelLimits())


def test_symbolic_link_is_refused(tmp_path: Path, pushed: Mapping[str, Path]) -> None:
    link = tmp_path / "link"
    link.symlink_to(pushed["weights/w.bin"])

    with pytest.raises(InvalidInputError, match="is a link"):
        pack_external_data(external_model(location="w", offset="8"), {"w": link}, ModelLimits())


def test_hard_link_is_refused(tmp_path: Path, pushed: Mapping[str, Path]) -> None:
    os.link(pushed["weights/w.bin"], tmp_path / "second-name")

    with pytest.raises(InvalidInputError, match="single name"):
        pack_external_data(external_model(location="weights/w.bin", offset="8"), pushed, ModelLimits())


def test_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    with pytest.raises(InvalidInputError, match="plain file"):
        pack_external_data(external_model(location="w"), {"w": fifo}, ModelLimits())


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ({"offset": "16"}, "16 to 40"),
        ({"offset": "-8"}, "-8 to 16"),
        ({"offset": "99999999999999999999"}, "which has 32 bytes"),
        ({"offset": "8", "length": "23"}, "23 bytes, its shape and type need 24"),
        ({"offset": "8", "length": "many"}, "no number"),
    ],
)
def test_ranges_that_do_not_fit_are_refused(pushed: Mapping[str, Path], reference: dict[str, str], text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        pack_external_data(external_model(location="weights/w.bin", **reference), pushed, ModelLimits())


def test_data_over_the_limit_is_refused_before_it_is_read(pushed: Mapping[str, Path]) -> None:
    model = external_model(location="weights/w.bin", offset="8")

    with pytest.raises(OverLimitError, match="larger than 23 bytes"):
        pack_external_data(model, pushed, ModelLimits(external_bytes=23))


def test_sparse_tensor_with_external_data_is_refused(pushed: Mapping[str, Path]) -> None:
    model = external_model(location="weights/w.bin", offset="8")
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(model.graph.initializer[0])
    sparse.values.name = "s"

    with pytest.raises(InvalidInputError, match="sparse tensor 's'"):
        pack_external_data(model, pushed, ModelLimits())


def test_tensors_in_attributes_and_subgraphs_are_checked_too(pushed: Mapping[str, Path]) -> None:
    value = helper.make_tensor_value_info
    hidden = external_model(location="../secret").graph.initializer[0]
    constant = helper.make_node("Constant", [], ["b"])
    constant.attribute.append(onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR, t=hidden))
    branch = helper.make_graph([constant], "b", [], [value("b", 1, [2, 3])])
    node = helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)
    model = model_of([node], [value("flag", 9, [])], [value("y", 1, [2, 3])])

    with pytest.raises(InvalidInputError, match="not inside the model's folder"):
        pack_external_data(model, pushed, ModelLimits())
