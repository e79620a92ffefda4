# SPDX-License-Identifier: Apache-2.0
"""Comparing two forms of one model: what counts as equal, and what is said when nothing can be compared."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler_svc.intake.equivalence import Comparison, Verdict, compare, difference, on_cpu
from compiler_svc.intake.signature import signature
from compiler_svc.intake.trial_inputs import MAX_ELEMENTS, trial_inputs
from dovetail.ranges import DimRange
from dovetail.tensor import TensorSpec
from tests.fakes.onnx_models import conv_net, elementwise, model_of, save

value = helper.make_tensor_value_info
FP32 = TensorSpec("y", "FP32", (-1,))


def compared(folder: Path, original: Any, changed: Any) -> Comparison:
    inputs, outputs = signature(original)
    files = [save(original, folder / "before.onnx"), save(changed, folder / "after.onnx")]
    return compare(on_cpu(files[0]), on_cpu(files[1]), trial_inputs(inputs, (), None), outputs)


def scaled(factor: float) -> Any:
    weight = numpy_helper.from_array(np.array([factor], np.float32), "w")
    node = helper.make_node("Mul", ["x", "w"], ["y"])
    return model_of([node], [value("x", 1, ["n", "m"])], [value("y", 1, ["n", "m"])], [weight])


def test_a_change_within_rounding_is_equal_and_one_beyond_is_named(tmp_path: Path) -> None:
    assert compared(tmp_path, scaled(1.0), scaled(1.000001)) == Comparison(Verdict.EQUAL)

    outcome = compared(tmp_path, scaled(1.0), scaled(1.001))

    assert outcome.verdict is Verdict.DIFFERENT
    assert outcome.why.startswith("output 'y' differs by")


def test_a_size_that_was_burnt_into_the_graph_is_seen(tmp_path: Path) -> None:
    def reshaped(rows: int) -> Any:
        shape = numpy_helper.from_array(np.array([rows, 4], np.int64), "s")
        node = helper.make_node("Reshape", ["x", "s"], ["y"])
        return model_of([node], [value("x", 1, ["n", 4])], [value("y", 1, ["n", 4])], [shape])

    outcome = compared(tmp_path, reshaped(-1), reshaped(1))

    assert outcome.verdict is Verdict.DIFFERENT


def test_a_form_that_does_not_load_is_different(tmp_path: Path) -> None:
    outcome = compared(tmp_path, elementwise(), elementwise("Nope"))

    assert outcome.verdict is Verdict.DIFFERENT
    assert "cannot load" in outcome.why


class ThrowingDice:
    """A session that gives another number each time."""

    concurrent = True
    inputs = outputs = (FP32,)
    thrown = itertools.count()

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        return {"y": np.array([next(self.thrown)], np.float32)}

    def close(self) -> None:
        pass


def test_results_that_change_by_themselves_cannot_be_compared() -> None:
    outcome = compare(ThrowingDice, ThrowingDice, [[{"y": np.zeros(1, np.float32)}]], [FP32])

    assert outcome == Comparison(Verdict.UNKNOWN, "it gives other results on each run")


def test_a_model_that_runs_on_nothing_made_up_cannot_be_compared(tmp_path: Path) -> None:
    node = helper.make_node("Reshape", ["x", "s"], ["y"])
    model = model_of([node], [value("x", 1, [6]), value("s", 7, [2])], [value("y", 1, ["a", "b"])])

    outcome = compared(tmp_path, model, model)

    assert outcome.verdict is Verdict.UNKNOWN
    assert "push samples with it" in outcome.why


def test_a_model_that_does_not_load_cannot_be_compared(tmp_path: Path) -> None:
    outcome = compared(tmp_path, elementwise("Nope"), elementwise())

    assert outcome.verdict is Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("expected", "actual", "spec", "text"),
    [
        ([1.0, np.nan, np.inf], [1.0, np.nan, np.inf], FP32, ""),
        ([1.0, np.nan], [1.0, 2.0], FP32, "NaN or infinite in other places"),
        ([1.0, np.inf], [1.0, -np.inf], FP32, "NaN or infinite in other places"),
        ([np.nan], [np.nan], FP32, ""),
        ([5.0], [5.1], FP32, "differs by 2.0e-02"),
        ([0.0, 0.0], [0.0, 1e-6], FP32, ""),
    ],
)
def test_floats_are_compared_by_their_range_and_special_values_by_place(
    expected: list[float], actual: list[float], spec: TensorSpec, text: str
) -> None:
    found = difference(np.array(expected, np.float32), np.array(actual, np.float32), spec)

    assert (text in found) if text else found == ""


def test_integers_and_shapes_must_be_the_same() -> None:
    whole = TensorSpec("y", "INT64", (-1,))

    assert difference(np.array([1, 2]), np.array([1, 2]), whole) == ""
    assert difference(np.array([1, 2]), np.array([1, 3]), whole) == "output 'y' differs in 1 of 2 elements"
    assert "instead of float32 [2]" in difference(np.zeros(2, np.float32), np.zeros(3, np.float32), FP32)
    bits = TensorSpec("y", "BF16", (-1,))
    assert difference(np.array([0x3F80], np.uint16), np.array([0x3F81], np.uint16), bits) == ""
    assert difference(np.array([0x3F80], np.uint16), np.array([0x4000], np.uint16), bits) != ""


def test_trial_inputs_take_samples_then_every_size_of_a_range_and_a_batch() -> None:
    inputs, _ = signature(conv_net())
    ranged = [DimRange("image", 0, 1, 4, 16)]

    sizes = [next(group)["image"].shape[0] for group in trial_inputs(inputs, ranged, None)]
    plain = [next(group)["image"].shape[0] for group in trial_inputs(inputs, (), None)]

    assert sizes == [4, 1, 16]
    assert plain == [1, 3]


def test_trial_inputs_that_are_too_large_are_left_out() -> None:
    spec = TensorSpec("x", "FP32", (-1, 2))
    ranged = [DimRange("x", 0, 1, 2, MAX_ELEMENTS)]

    groups = [list(group) for group in trial_inputs([spec], ranged, None)]

    assert [len(group) for group in groups] == [2, 2, 0]


def test_integer_inputs_fall_back_to_zeros(tmp_path: Path) -> None:
    table = numpy_helper.from_array(np.ones((1, 3), np.float32), "t")
    node = helper.make_node("Gather", ["t", "i"], ["y"])
    model = model_of([node], [value("i", TensorProto.INT64, ["n"])], [value("y", 1, ["n", 3])], [table])

    assert compared(tmp_path, model, model) == Comparison(Verdict.EQUAL)
