# SPDX-License-Identifier: Apache-2.0
"""Orders for the build child that tests share: a small convolutional net and a few recipes for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from compiler_svc.worker.build_spec import BuildSpec, ChildLimits, Progress
from dovetail.contract import Contract
from dovetail.recipe import Recipe
from dovetail.rules import ModelFacts
from dovetail.tensor import TensorSpec

LIMITS = ChildLimits(wall_s=120)
IMAGE, LOGITS = TensorSpec("image", "FP32", (-1, 1, 8, 8)), TensorSpec("logits", "FP32", (-1, 10))
FP32 = Recipe("ort-fp32", "onnxruntime", "cpu", "fp32", {"optimization_level": "basic"})
STATIC = Recipe(
    "ort-int8-static",
    "onnxruntime",
    "cpu",
    "int8",
    {"quantization": "static", "reduce_range": True, "int8_flavour": "static-u8s8-rr"},
    needs_calibration=True,
)
OPENVINO = Recipe("openvino-int8", "openvino", "cpu", "int8", needs_calibration=True)
DYNAMIC = Recipe("ort-int8-dynamic", "onnxruntime", "cpu", "int8", {"quantization": "dynamic"})


def silent(step: Progress) -> None:
    """Progress is not of interest."""


def spec_of(recipe: Recipe, **changes: Any) -> BuildSpec:
    """An order for the net of `onnx_models.conv_net`."""
    contract = Contract(recipe.engine, recipe.device, recipe.precision, details={"kept": "yes"})
    facts = ModelFacts(17, 8, 5000, has_calibration=True)
    spec = BuildSpec(
        recipe, contract, (IMAGE,), (LOGITS,), facts, "class-1", frozenset({"avx2"}), 1, measure_budget_s=0.2
    )
    return replace(spec, **changes)
