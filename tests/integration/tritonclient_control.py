# SPDX-License-Identifier: Apache-2.0
"""Run by test_tritonclient_control.py in tritonclient's venv: controls models of the server at argv[1], prints JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

CONFIG = {
    "backend": "onnxruntime",
    "max_batch_size": 4,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}],
    "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [4]}],
}
client = triton.InferenceServerClient(sys.argv[1])


def ask(model: str) -> list[float]:
    """First row of y for ones."""
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 4), np.float32))
    values: list[float] = client.infer(model, [tensor]).as_numpy("y")[0].tolist()
    return values


found: dict[str, object] = {"pipeline": ask("p"), "config": client.get_model_config("p", as_json=True)}
client.load_model("m", config=json.dumps(CONFIG))
found["limit"] = client.get_model_config("m", as_json=True)["config"]["max_batch_size"]
client.load_model("sent", config=json.dumps(CONFIG), files={"file:1/model.onnx": Path(sys.argv[2]).read_bytes()})
found["sent"] = ask("sent")
client.unload_model("p", unload_dependents=True)
found["ready"] = {name: client.is_model_ready(name) for name in ("p", "m", "sent")}
try:
    client.load_model("m", config='{"colour": 1}')
except InferenceServerException as error:
    found["refused"] = [error.status(), error.message()]
print(json.dumps(found))
