# SPDX-License-Identifier: Apache-2.0
"""Optimisation profiles from the recipe, declared ranges and samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compiler_svc.backends.tensorrt_profiles import profile_texts, profiles_of
from dovetail.errors import UnsupportedError
from dovetail.ranges import DimRange
from dovetail.recipe import Recipe
from dovetail.tensor import TensorSpec

IMAGE = TensorSpec("image", "FP32", (-1, 3, 8, 8))
TOKENS = TensorSpec("ids:0", "INT64", (-1, -1))


def recipe(**options: Any) -> Recipe:
    batches = {"profile_min_batch": 1, "profile_opt_batch": 8, "profile_max_batch": 32}
    return Recipe("tensorrt-fp16", "tensorrt", "cuda", "fp16", {**batches, **options})


def texts(*inputs: TensorSpec, ranges: tuple[DimRange, ...] = (), samples: Any = None, **options: Any) -> Any:
    return profile_texts(profiles_of(recipe(**options), inputs, ranges, samples))


def test_a_fixed_model_has_no_profiles() -> None:
    assert profiles_of(recipe(), (TensorSpec("x", "FP32", (1, 4)),), (), None) == ()


def test_a_free_batch_has_a_general_profile_and_one_for_the_smallest() -> None:
    assert texts(IMAGE) == ("0:image:1x3x8x8:8x3x8x8:32x3x8x8", "1:image:1x3x8x8:1x3x8x8:1x3x8x8")
    assert texts(IMAGE, single_profile=False) == ("0:image:1x3x8x8:8x3x8x8:32x3x8x8",)


def test_a_second_profile_that_would_be_the_first_again_is_left_out() -> None:
    assert len(texts(IMAGE, profile_opt_batch=1, profile_max_batch=1)) == 1


def test_declared_ranges_come_before_the_recipe_and_samples() -> None:
    ranges = (DimRange("ids:0", 1, 4, 32, 128), DimRange("ids:0", 0, 2, 2, 4))
    samples = {"ids:0": np.zeros((5, 64), np.int64)}

    assert texts(TOKENS, ranges=ranges, samples=samples)[0] == "0:ids:0:2x4:2x32:4x128"


def test_an_undeclared_axis_is_as_large_as_in_the_samples() -> None:
    assert texts(TOKENS, samples={"ids:0": np.zeros((5, 64), np.int64)})[0] == "0:ids:0:1x1:8x64:32x64"
    assert texts(TOKENS, samples={"ids:0": np.zeros((5, 1, 48), np.int64)})[0] == "0:ids:0:1x1:8x48:32x48"


def test_a_free_axis_of_which_nothing_is_known_is_refused_with_what_to_do() -> None:
    with pytest.raises(UnsupportedError, match="axis 1 of input 'ids:0' is free.*push the model with a range"):
        texts(TOKENS)


def test_batches_out_of_order_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="8, 4, 32 are not 1 <= min <= opt <= max"):
        texts(IMAGE, profile_min_batch=8, profile_opt_batch=4)


def test_inputs_without_axes_are_in_every_profile() -> None:
    assert texts(IMAGE, TensorSpec("flag", "BOOL", ()))[0:2] == (
        "0:flag:::",
        "0:image:1x3x8x8:8x3x8x8:32x3x8x8",
    )
