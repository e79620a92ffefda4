# SPDX-License-Identifier: Apache-2.0
"""From nodes of the ONNX graph to what OpenVINO's conversion made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from onnx import numpy_helper

from compiler_svc.backends.openvino_nodes import operations_of
from dovetail.recipe import Recipe
from tests.fakes.onnx_models import conv_net, model_of, save


def normalised_conv_net() -> Any:
    """`conv_net` with a batch normalisation after each convolution, as training frameworks export it."""
    from onnx import helper

    net = conv_net()
    random = np.random.default_rng(5)
    nodes, weights = [], list(net.graph.initializer)
    for node in net.graph.node:
        nodes.append(node)
        if node.op_type == "Conv":
            raw = f"{node.output[0]}_raw"
            parts = [f"{node.name}_{part}" for part in ("scale", "shift", "mean", "variance")]
            values = random.uniform(0.5, 1.5, (4, 8)).astype(np.float32)
            weights += [numpy_helper.from_array(row, name) for name, row in zip(parts, values, strict=True)]
            nodes.append(helper.make_node("BatchNormalization", [raw, *parts], node.output, name=f"{node.name}_norm"))
            node.output[0] = raw
    return model_of(nodes, list(net.graph.input), list(net.graph.output), weights)


@pytest.mark.parametrize("node", ["conv1", "conv2"])
def test_a_convolution_whose_normalisation_was_folded_is_found_and_no_other(tmp_path: Path, node: str) -> None:
    """Excluding only the addition that is left of it kept nothing in float, and mixed precision gained nothing."""
    path = save(normalised_conv_net(), tmp_path / "net.onnx")
    model = openvino.convert_model(path)
    convolutions = [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() == "Convolution"]
    recipe = Recipe("any", "openvino", "cpu", "int8", {"quantization": "static"}, excluded_nodes=(node,))

    found = operations_of(recipe, path, model)

    assert found.folded == ()
    assert set(found.operations) & set(convolutions) == {convolutions[int(node[-1]) - 1]}
