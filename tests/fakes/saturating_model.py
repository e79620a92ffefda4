# SPDX-License-Identifier: Apache-2.0
"""A model whose full-range U8S8 form saturates without VNNI: large inputs, and weights of one sign near their maximum.

A pair of products is then about 2 x 191 x 115 = 43930, over the 32767 at which VPMADDUBSW clips. With reduced range
(7-bit weights) a pair has 2 x 255 x 63 = 32130 at most, so nothing can clip.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from dovetail.recipe import Recipe
from dovetail.rules import ModelFacts
from dovetail.tensor import TensorSpec
from tests.fakes.onnx_models import model_of

X, Y = TensorSpec("x", "FP32", (-1, 64)), TensorSpec("y", "FP32", (-1, 16))
FACTS = ModelFacts(17, 8, 4096, has_calibration=True, operators=frozenset({"Gemm"}))


def saturating_model() -> Any:
    """One fully connected layer from 64 to 16 features."""
    random = np.random.default_rng(3)
    signs = np.where(np.arange(16) % 2, 1.0, -1.0)
    weights = (signs * random.uniform(0.8, 1.0, (64, 16))).astype(np.float32)
    biases = np.zeros(16, dtype=np.float32)
    stored = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(biases, "b")]
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="layer")
    value = helper.make_tensor_value_info
    inputs, outputs = [value("x", TensorProto.FLOAT, ["batch", 64])], [value("y", TensorProto.FLOAT, ["batch", 16])]
    return model_of([node], inputs, outputs, stored)


def loud_samples(count: int, *, seed: int = 4) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Inputs of different level, all in the upper half of their range."""
    random = np.random.default_rng(seed)
    level = random.uniform(0.0, 0.5, (count, 1))
    return (0.5 + level * random.uniform(0.5, 1.0, (count, 64))).astype(np.float32)


def static_recipe(name: str, machine_recipes: tuple[Recipe, ...]) -> Recipe:
    """The recipe of that name among those that a machine could use."""
    return next(recipe for recipe in machine_recipes if recipe.name == name)
