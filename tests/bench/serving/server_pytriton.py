# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's PyTriton (Triton's own server, models in Python) with the two models on ONNX Runtime and dynamic batching.

    python server_pytriton.py FOLDER PORT TOKEN

Knows nothing of Dovetail; runs in a venv with nvidia-pytriton.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import onnxruntime
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig, TritonSecurityConfig


def inference_of(path: Path) -> object:
    """A function that PyTriton can bind."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])

    @batch
    def infer(x: np.ndarray) -> dict:
        return {"y": session.run(None, {"x": x})[0]}

    return infer


def main(folder: Path, port: int, token: str) -> None:
    config = TritonConfig(grpc_port=port, http_port=port + 1, metrics_port=port + 2)
    with Triton(config=config, security_config=TritonSecurityConfig(access_token=token)) as triton:
        for name, rows, columns in (("mlp", 64, (16, 4)), ("large", 8, (-1, -1))):
            triton.bind(
                name,
                inference_of(folder / f"{name}.onnx"),
                [Tensor(name="x", dtype=np.float32, shape=(columns[0],))],
                [Tensor(name="y", dtype=np.float32, shape=(columns[1],))],
                config=ModelConfig(max_batch_size=rows, batching=True, batcher=DynamicBatcher()),
            )
        triton.run()
        threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
