# SPDX-License-Identifier: Apache-2.0
"""MLServer with the two models on ONNX Runtime, in one process and without adaptive batching, its fastest setting here.

    python server_mlserver.py FOLDER PORT

Knows nothing of Dovetail; runs in a venv with mlserver.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import onnxruntime
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):
    """One ONNX file."""

    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(self.settings.parameters.uri, options, ["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        (y,) = self._session.run(None, {"x": NumpyCodec.decode_input(payload.inputs[0])})
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)])


async def main(folder: Path, port: int) -> None:
    settings = Settings(
        host="127.0.0.1",
        grpc_port=port,
        http_port=port + 1,
        metrics_port=port + 2,
        parallel_workers=0,
        grpc_max_message_length=-1,
        debug=False,
    )
    models = [
        ModelSettings(name=name, implementation=OnnxModel, parameters=ModelParameters(uri=str(folder / f"{name}.onnx")))
        for name in ("mlp", "large")
    ]
    await MLServer(settings).start(models)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
