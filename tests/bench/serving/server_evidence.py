# SPDX-License-Identifier: Apache-2.0
"""Our runtime server for tools that nobody here wrote: the small network, and models with sequences and many replies.

    python -m tests.bench.serving.server_evidence FOLDER PORT

Local models, and shared memory under any name, because perf_analyzer chooses its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from dovetail.log import configure
from dovetail.rpc.lifecycle import run_until_stopped
from runtime_svc.local_repository.models import LocalModels
from runtime_svc.local_repository.opening import Opener
from runtime_svc.local_repository.uploads import Uploads
from runtime_svc.repository import Repository
from runtime_svc.server import start_inference_server
from runtime_svc.shared_memory import ANY_PREFIX, SharedMemoryRegions
from tests.bench.serving.models import CLASSES, FEATURES, MLP, MLP_MAX_BATCH, write_models
from tests.conformance.sequence_models import write_sequences


def write_small_network(folder: Path) -> None:
    """Write it as a local model."""
    version = folder / MLP / "1"
    version.mkdir(parents=True)
    write_models(version)
    (version / f"{MLP}.onnx").rename(version / "model.onnx")
    (version / "large.onnx").unlink()
    config = {
        "name": MLP,
        "backend": "onnxruntime",
        "max_batch_size": MLP_MAX_BATCH,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [FEATURES]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [CLASSES]}],
        "dynamic_batching": {},
    }
    (folder / MLP / "config.json").write_text(json.dumps(config))


async def serve(folder: Path, port: int, stop: asyncio.Event) -> None:
    """Serve until told to stop."""
    os.umask(0o022)  # local models are refused where others may write
    write_small_network(folder)
    write_sequences(folder)
    repository = Repository()
    models = LocalModels(folder, Opener(repository, any_trusted=True), uploads=Uploads(folder.parent / "uploads"))
    await models.start()
    rpc = await start_inference_server(
        repository, address=f"127.0.0.1:{port}", control=models, regions=SharedMemoryRegions(ANY_PREFIX)
    )
    await stop.wait()
    await rpc.stop(grace_s=0.5)
    await models.close()
    await repository.close()


if __name__ == "__main__":
    configure("evidence", json=False)
    sys.exit(run_until_stopped(lambda stop: serve(Path(sys.argv[1]), int(sys.argv[2]), stop)))
