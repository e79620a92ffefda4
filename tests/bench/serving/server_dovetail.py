# SPDX-License-Identifier: Apache-2.0
"""Our runtime server with the two models and everything on: batcher, metrics, shared memory.

python -m tests.bench.serving.server_dovetail FOLDER PORT [FRONT_ENDS]
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from dovetail.engines import SessionOptions, create_engine
from dovetail.log import configure
from dovetail.rpc.lifecycle import run_until_stopped
from runtime_svc.front_ends.options import FrontEndOptions
from runtime_svc.metrics import start_metrics_server
from runtime_svc.repository import Repository
from runtime_svc.served_model import ModelFacts, ServedModel
from runtime_svc.server import start_inference_server
from runtime_svc.shared_memory import SharedMemoryRegions
from tests.bench.serving.models import LARGE, LARGE_MAX_BATCH, MLP, MLP_MAX_BATCH


async def serve(folder: Path, port: int, front_ends: int, stop: asyncio.Event) -> None:
    """Serve until told to stop."""
    repository = Repository()
    for name, rows in ((MLP, MLP_MAX_BATCH), (LARGE, LARGE_MAX_BATCH)):
        session = create_engine("onnxruntime").load({"model.onnx": folder / f"{name}.onnx"}, SessionOptions(threads=1))
        facts = ModelFacts(name, 1, session.inputs, session.outputs, rows, "b" * 64, "ort-fp32", "onnxruntime")
        repository.install(ServedModel.start(facts, [session]))
    metrics = start_metrics_server(repository, "127.0.0.1", 0)
    rpc = await start_inference_server(
        repository,
        address=f"127.0.0.1:{port}",
        regions=SharedMemoryRegions("dovetail_bench_"),
        front_ends=FrontEndOptions(front_ends) if front_ends else None,
    )
    await stop.wait()
    await rpc.stop(grace_s=0.5)
    await asyncio.to_thread(metrics.close)
    await repository.close()


if __name__ == "__main__":
    configure("bench", json=False)
    numbers = [int(argument) for argument in sys.argv[2:]]
    sys.exit(run_until_stopped(lambda stop: serve(Path(sys.argv[1]), numbers[0], sum(numbers[1:]), stop)))
