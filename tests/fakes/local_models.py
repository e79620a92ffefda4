# SPDX-License-Identifier: Apache-2.0
"""Folders of local models for tests: a model that multiplies by a factor, and pipelines of such."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

FOUR = {"data_type": "TYPE_FP32", "dims": [4]}


def scaling(factor: float) -> bytes:
    """An ONNX file: y = factor x, of shape (rows, 4)."""
    nodes = [
        helper.make_node("Constant", [], ["f"], value=helper.make_tensor("f", TensorProto.FLOAT, [], [factor])),
        helper.make_node("Mul", ["x", "f"], ["y"]),
    ]
    tensors = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 4])] for name in ("x", "y")]
    graph = helper.make_graph(nodes, "scaling", *tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
    data: bytes = onnx.ModelProto.SerializeToString(model)
    return data


def signature(**more: Any) -> dict[str, Any]:
    """A configuration for it."""
    return {"max_batch_size": 8, "input": [{"name": "x", **FOUR}], "output": [{"name": "y", **FOUR}], **more}


def write(root: Path, name: str, config: object, **files: bytes) -> Path:
    """A model folder; a file is named `v1_model_onnx` for `1/model.onnx`."""
    folder = root / name
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    for key, content in files.items():
        version, _, file = key.removeprefix("v").partition("_")
        (folder / version).mkdir(mode=0o700, exist_ok=True)
        (folder / version / file.replace("_", ".")).write_bytes(content)
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return folder


def write_pipeline(root: Path, name: str, *models: str, **more: Any) -> None:
    """A pipeline of such models, one after the other."""
    tensors = ["x", *(f"t{index}" for index in range(1, len(models))), "y"]
    steps = [
        {"model_name": model, "model_version": -1, "input_map": {"x": left}, "output_map": {"y": right}}
        for model, left, right in zip(models, tensors, tensors[1:], strict=False)
    ]
    write(root, name, signature(platform="ensemble", ensemble_scheduling={"step": steps}, **more))
