# SPDX-License-Identifier: Apache-2.0
"""Refuses models whose outputs cannot be proven, because there is no reference to hold them against.

The reference is ONNX Runtime. Random operators answer otherwise every time, and a few operators it is known to compute
otherwise than the ONNX specification; an artifact that agrees with it would then be wrong in the same way. Which ones
was found with the backend tests of the onnx package (1.23.2, see docs/coverage.md) on onnxruntime 1.31.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx

from compiler_svc.intake import graph
from dovetail.errors import UnsupportedError

RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


def refuse_unprovable(model: Any) -> None:
    """Check all nodes.

    Raises:
        UnsupportedError: One has no reference; the text names it and says what to do.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in graph.nodes(model):
        if node.domain not in graph.STANDARD_DOMAINS:
            continue
        if node.op_type in RANDOM or _drops_while_training(node, constants):
            raise UnsupportedError(
                f"operator {node.op_type} (node {node.name!r}) answers otherwise every time, so nothing built from the"
                " model can be proven; export it for inference, or pass the random values as an input"
            )
        deviates = _DEVIATIONS.get(node.op_type)
        if deviates is not None and (why := deviates(node, constants)):
            raise UnsupportedError(
                f"onnxruntime, which gives the reference, computes operator {node.op_type} (node {node.name!r}) {why}"
                " otherwise than ONNX specifies, so nothing built from the model can be proven; export it differently"
            )


def _drops_while_training(node: Any, constants: Mapping[str, Any]) -> bool:
    """True for a Dropout whose training mode is on, or may be."""
    if node.op_type != "Dropout" or len(node.input) < 3 or not node.input[2]:
        return False
    mode = constants.get(node.input[2])
    return mode is None or bool(onnx.numpy_helper.to_array(mode).any())


def _max_unpool(node: Any, constants: Mapping[str, Any]) -> str:
    """The indices are taken for the inferred shape, not for the one given."""
    return "with an output shape as its third input" if len(node.input) > 2 and node.input[2] else ""


def _resize(node: Any, constants: Mapping[str, Any]) -> str:
    """Aligned corners are those of the rounded size, the specification's those of the size before rounding."""
    mode = next((item.s for item in node.attribute if item.name == "coordinate_transformation_mode"), b"")
    if mode != b"align_corners" or len(node.input) < 3 or not node.input[2]:
        return ""
    scales = constants.get(node.input[2])
    if scales is not None and all(float(scale).is_integer() for scale in onnx.numpy_helper.to_array(scales).ravel()):
        return ""
    return "with aligned corners and scales that are not known to be whole numbers (give sizes instead)"


_DEVIATIONS: Mapping[str, Callable[[Any, Mapping[str, Any]], str]] = {"MaxUnpool": _max_unpool, "Resize": _resize}
