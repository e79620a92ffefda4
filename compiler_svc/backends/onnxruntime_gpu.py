# SPDX-License-Identifier: Apache-2.0
"""What a build adds for NVIDIA GPUs: the shapes that ONNX Runtime's TensorRT provider prepares its engine for.

Without a profile the provider builds a new engine, in the middle of a request, whenever a batch is larger or smaller
than all before it. The graph itself is the one of the CPU recipes, in fp32 or fp16.

Source: ONNX Runtime documentation, "TensorRT execution provider", trt_profile_min_shapes, _opt_shapes and _max_shapes:
all three, for every input with a free dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dovetail.contract import Contract, Detail
from dovetail.rules.onnxruntime_gpu import TENSORRT_PROVIDER
from dovetail.tensor import TensorSpec

BATCHES = {"min": 1, "opt": 8, "max": 64}
"""Rows that engines are built for; the last is the most that a manifest allows to be formed."""


def with_shape_profile(contract: Contract, inputs: Sequence[TensorSpec]) -> Contract:
    """The contract with a profile for free batch sizes.

    Unchanged for other providers, for fixed shapes, and where another dimension than the first is free: what it ranges
    over is then left to the provider, which learns it from the requests.
    """
    free = [spec for spec in inputs if -1 in spec.shape]
    fits = contract.text("execution_provider") == TENSORRT_PROVIDER and free
    if not fits or any(-1 in spec.shape[1:] for spec in free):
        return contract
    known = contract.details.get("provider_options", ())
    options = tuple(str(item) for item in known) if isinstance(known, tuple) else ()
    added = [f"{TENSORRT_PROVIDER}:trt_profile_{end}_shapes={_shapes(free, rows)}" for end, rows in BATCHES.items()]
    details: dict[str, Detail] = {**contract.details, "provider_options": tuple(sorted({*options, *added}))}
    return replace(contract, details=details)


def _shapes(inputs: Sequence[TensorSpec], rows: int) -> str:
    return ",".join(f"{spec.name}:{'x'.join(str(dim) for dim in (rows, *spec.shape[1:]))}" for spec in inputs)
