# SPDX-License-Identifier: Apache-2.0
"""KServe's Python server with the two models on ONNX Runtime, in one process.

    python server_kserve.py FOLDER PORT

Knows nothing of Dovetail; runs in a venv with kserve.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class OnnxModel(Model):
    """One ONNX file."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        self.ready = True

    async def predict(self, payload: InferRequest, headers: dict | None = None, *_: object) -> InferResponse:
        (y,) = self._session.run(None, {"x": payload.inputs[0].as_numpy()})
        output = InferOutput(name="y", shape=list(y.shape), datatype="FP32")
        output.set_data_from_numpy(y, binary_data=True)
        return InferResponse(response_id=payload.id, model_name=self.name, infer_outputs=[output])


if __name__ == "__main__":
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    logging.disable(logging.INFO)  # it would log every request
    server = ModelServer(http_port=port + 1, grpc_port=port, enable_grpc=True, workers=1, access_log_format=None)
    server.start([OnnxModel(name, folder / f"{name}.onnx") for name in ("mlp", "large")])
