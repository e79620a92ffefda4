# SPDX-License-Identifier: Apache-2.0
"""Models without a reference are refused, and the same operators used otherwise are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler_svc.intake.unprovable import RANDOM, refuse_unprovable
from dovetail.errors import UnsupportedError
from tests.fakes.onnx_models import elementwise, model_of


@pytest.mark.parametrize("operator", sorted(RANDOM))
def test_random_operators_are_refused_by_name(operator: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"{operator} .*answers otherwise every time"):
        refuse_unprovable(elementwise(operator))


@pytest.mark.parametrize(("training", "refused"), [(True, True), (None, True), (False, False)])
def test_dropout_is_refused_only_if_it_may_be_training(training: bool | None, refused: bool) -> None:
    value = helper.make_tensor_value_info
    inputs = [value("x", TensorProto.FLOAT, [2])]
    weights = [numpy_helper.from_array(np.array(0.5, dtype=np.float32), "ratio")]
    if training is None:
        inputs.append(value("mode", TensorProto.BOOL, []))
    else:
        weights.append(numpy_helper.from_array(np.array(training), "mode"))
    node = helper.make_node("Dropout", ["x", "ratio", "mode"], ["y"])
    model = model_of([node], inputs, [value("y", TensorProto.FLOAT, [2])], weights)

    if refused:
        with pytest.raises(UnsupportedError, match="Dropout"):
            refuse_unprovable(model)
    else:
        refuse_unprovable(model)


def resize(scales: list[float] | None, mode: str = "align_corners") -> Any:
    """A Resize by scales that are a constant, or (None) an input."""
    value = helper.make_tensor_value_info
    inputs = [value("x", TensorProto.FLOAT, [1, 1, 4, 4])]
    weights = []
    if scales is None:
        inputs.append(value("scales", TensorProto.FLOAT, [4]))
    else:
        weights.append(numpy_helper.from_array(np.array(scales, dtype=np.float32), "scales"))
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="linear", coordinate_transformation_mode=mode)
    return model_of([node], inputs, [value("y", TensorProto.FLOAT, [1, 1, None, None])], weights)


@pytest.mark.parametrize("scales", [None, [1, 1, 0.6, 0.6]])
def test_resize_with_aligned_corners_and_broken_scales_is_refused_with_the_way_out(scales: list[float] | None) -> None:
    with pytest.raises(UnsupportedError, match=r"Resize .*give sizes instead"):
        refuse_unprovable(resize(scales))


def test_other_resizes_are_taken() -> None:
    refuse_unprovable(resize([1, 1, 2, 2]))
    refuse_unprovable(resize([1, 1, 0.6, 0.6], "half_pixel"))


@pytest.mark.parametrize(("inputs", "refused"), [(["x", "i", "shape"], True), (["x", "i"], False)])
def test_max_unpool_is_refused_only_with_an_output_shape(inputs: list[str], refused: bool) -> None:
    value = helper.make_tensor_value_info
    node = helper.make_node("MaxUnpool", inputs, ["y"], kernel_shape=[2, 2])
    kinds = {"x": TensorProto.FLOAT, "i": TensorProto.INT64, "shape": TensorProto.INT64}
    listed = [value(name, kinds[name], [4] if name == "shape" else [1, 1, 2, 2]) for name in inputs]
    model = model_of([node], listed, [value("y", TensorProto.FLOAT, None)])

    if refused:
        with pytest.raises(UnsupportedError, match="MaxUnpool"):
            refuse_unprovable(model)
    else:
        refuse_unprovable(model)
