# SPDX-License-Identifier: Apache-2.0
"""A real Triton server with the suite's models, through NVIDIA's PyTriton; needs a venv with `nvidia-pytriton`.

    python pytriton_server.py GRPC_PORT [TOKEN]

Prints READY once it answers; serves until it is stopped. Knows nothing of Dovetail. BF16 is left out, which PyTriton
does not have, and the models are Python functions, because its Triton has no ONNX Runtime.
"""

from __future__ import annotations

import sys
import threading
import time

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig, TritonSecurityConfig

DTYPES = {
    "bool": np.bool_, "uint8": np.uint8, "uint16": np.uint16, "uint32": np.uint32, "uint64": np.uint64,
    "int8": np.int8, "int16": np.int16, "int32": np.int32, "int64": np.int64, "fp16": np.float16,
    "fp32": np.float32, "fp64": np.float64, "bytes": bytes,
}  # fmt: skip
BATCHED = ModelConfig(max_batch_size=8, batching=True, batcher=DynamicBatcher())
WHOLE = ModelConfig(batching=False)


@batch
def identity(x: np.ndarray) -> dict:
    return {"y": x}


@batch
def add_sub(a: np.ndarray, b: np.ndarray) -> dict:
    return {"sum": a + b, "difference": a - b}


@batch
def picky(index: np.ndarray) -> dict:
    return {"picked": np.array([10, 20, 30, 40], np.float32)[index]}


def whole(requests: list) -> list:
    return [{"y": request["x"]} for request in requests]


def slow(requests: list) -> list:
    for request in requests:
        time.sleep(float(request["turns"][0]) * 1e-4)
    return [{"done": np.array([96.0], np.float32)} for _ in requests]


def tensor(name: str, dtype: type, *shape: int) -> Tensor:
    return Tensor(name=name, dtype=dtype, shape=shape)


def main() -> None:
    port = int(sys.argv[1])
    config = TritonConfig(grpc_port=port, http_port=port + 1, metrics_port=port + 2)
    security = TritonSecurityConfig(access_token=sys.argv[2] if len(sys.argv) > 2 else "token")
    with Triton(config=config, security_config=security) as triton:
        for name, dtype in DTYPES.items():
            triton.bind(
                f"identity_{name}", identity, [tensor("x", dtype, -1)], [tensor("y", dtype, -1)], config=BATCHED
            )
        two = [tensor("a", np.float32, 4), tensor("b", np.float32, 4)]
        results = [tensor("sum", np.float32, 4), tensor("difference", np.float32, 4)]
        triton.bind("add_sub", add_sub, two, results, config=BATCHED)
        triton.bind("picky", picky, [tensor("index", np.int64, 1)], [tensor("picked", np.float32, 1)], config=BATCHED)
        triton.bind("whole", whole, [tensor("x", np.float32, -1, -1)], [tensor("y", np.float32, -1, -1)], config=WHOLE)
        triton.bind("slow", slow, [tensor("turns", np.int64, 1)], [tensor("done", np.float32, 1)], config=WHOLE)
        triton.run()
        print("READY", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
