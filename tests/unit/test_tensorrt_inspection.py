# SPDX-License-Identifier: Apache-2.0
"""What the engine inspector's JSON says of precisions, in the forms of TensorRT 10 and 11."""

from __future__ import annotations

import json
from typing import Any

import pytest

from compiler_svc.backends.tensorrt_inspection import check_claim, compare, layers_of, precision_of
from dovetail.errors import BuildFailedError

# Shapes of these documents: TensorRT documentation, "Engine Inspector" (10.16) and "Migrating IEngineInspector Usage
# from TensorRT 10.x to 11.x" (11.3). Written by hand; none came from a GPU.
TEN = {
    "Layers": [
        {
            "Name": "conv1 + relu1",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "a", "Dimensions": [1, 8], "Format/Datatype": "Channel major FP16 format where C % 8"}],
            "Outputs": [{"Name": "b", "Dimensions": [1, 8], "Format/Datatype": "Half"}],
            "Metadata": "[ONNX Layer: conv1]\x1e[ONNX Layer: relu1]",
        }
    ],
    "Bindings": ["image", "logits"],
}
ELEVEN = {
    "Layers": [
        {
            "Name": "conv1 + relu1",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "a", "Format": "Channel major", "DataType": "Half"}],
            "Outputs": [{"Name": "b", "Format": "Channel major", "DataType": "Half"}],
            "Metadata": "[ONNX Layer: conv1]\x1e[ONNX Layer: relu1]",
        }
    ],
    "I/O Tensors": [{"Name": "image", "IOMode": "Input", "DataType": "Float"}],
}


def layer(nodes: list[str], *types: str, metadata: bool = True) -> dict[str, Any]:
    told = "\x1e".join(f"[ONNX Layer: {node}]" for node in nodes) if metadata else ""
    inputs = [{"DataType": kind} for kind in types]
    return {"Name": " + ".join(nodes), "LayerType": "kgen", "Inputs": inputs, "Metadata": told}


def found(*rows: dict[str, Any], **claimed: str) -> Any:
    return compare(layers_of(json.dumps({"Layers": list(rows)})), claimed)


@pytest.mark.parametrize("document", [TEN, ELEVEN], ids=["10", "11"])
def test_both_majors_tell_the_nodes_and_types_of_a_layer(document: dict[str, Any]) -> None:
    (only,) = layers_of(json.dumps(document))

    assert (only.nodes, only.inputs) == (("conv1", "relu1"), {"fp16"})


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("Half", "fp16"),
        ("Row major linear FP16", "fp16"),
        ("BFloat16", "bf16"),
        ("BF16", "bf16"),
        ("Float", "fp32"),
        ("Row major linear FP32 format (kLINEAR)", "fp32"),
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
        ("FP8", "fp8"),
        ("Int32", ""),
        ("Bool", ""),
        ("Int64", ""),
    ],
)
def test_words_for_precisions(text: str, precision: str) -> None:
    assert precision_of(text) == precision


def test_a_layer_in_another_precision_is_found() -> None:
    seen = found(layer(["conv1"], "Half"), layer(["conv2"], "Float"), conv1="fp16", conv2="fp16")

    assert (seen.seen, dict(seen.wrong)) == (("conv1",), {"conv2": "fp32"})
    with pytest.raises(BuildFailedError, match=r"claims \(fp16\): 1 heavy layers .* conv2 in fp32"):
        check_claim("fp16", seen)


def test_a_quantised_layer_that_runs_in_float_is_found() -> None:
    assert dict(found(layer(["conv1"], "Half"), conv1="int8").wrong) == {"conv1": "fp16"}


def test_a_layer_with_a_conversion_inside_hides_its_precision() -> None:
    seen = found(layer(["image__fp16__cast", "conv1"], "Float"), conv1="fp16", conv2="fp16")

    assert seen.hidden == ("conv1", "conv2")  # of the second nothing was seen at all
    assert check_claim("fp16", seen).endswith("2 are fused with a conversion and cannot be seen")


def test_layers_without_metadata_are_called_by_their_parts() -> None:
    assert found(layer(["conv1", "relu1"], "Half", metadata=False), conv1="fp16").seen == ("conv1",)


@pytest.mark.parametrize("text", ["", "[]", '{"Bindings": []}', '{"Layers": ["conv1"]}'])
def test_what_says_nothing_of_precisions_is_refused(text: str) -> None:
    with pytest.raises(BuildFailedError, match="engine inspector"):
        layers_of(text)
