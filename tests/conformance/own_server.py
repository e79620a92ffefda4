# SPDX-License-Identifier: Apache-2.0
"""Dovetail's own server with the suite's models, as a process of its own: what the suite asks unless told otherwise.

    python -m tests.conformance.own_server FOLDER PORT_FILE FRONT_ENDS

Everything is the product's own; the models are local ones, from a folder that is written first, instead of being
negotiated. Every line of `WRITERS` adds models to it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

from dovetail.log import configure
from dovetail.rpc.lifecycle import run_until_stopped
from runtime_svc.front_ends.options import FrontEndOptions
from runtime_svc.local_repository.models import LocalModels
from runtime_svc.local_repository.opening import Opener
from runtime_svc.local_repository.uploads import Uploads
from runtime_svc.repository import Repository
from runtime_svc.response_cache.cache import ResponseCache
from runtime_svc.server import start_inference_server
from runtime_svc.shared_memory import SharedMemoryRegions
from runtime_svc.trace import Tracer
from tests.conformance.batching_models import write_batching
from tests.conformance.models import write_models
from tests.conformance.pipeline_models import write_pipelines
from tests.conformance.sequence_models import write_sequences
from tests.conformance.turn_models import write_turns

WRITERS: tuple[Callable[[Path], None], ...] = (
    write_models,
    write_pipelines,
    write_sequences,
    write_batching,
    write_turns,
)
"""Each writes models as `<folder>/<model>/config.json` and `<folder>/<model>/<version>/model.onnx` or `model.py`."""


async def serve(folder: Path, port_file: Path, front_ends: int, stop: asyncio.Event) -> None:
    """Serve until told to stop."""
    os.umask(0o022)  # local models are refused where others may write
    for write in WRITERS:
        await asyncio.to_thread(write, folder)
    repository, tracer, replies = Repository(), Tracer(folder / "trace.json"), ResponseCache()
    repository.wrap_with(lambda model: replies.around(model, repository))
    models = LocalModels(folder, Opener(repository, any_trusted=True), uploads=Uploads(folder.parent / "uploads"))
    await models.start()
    rpc = await start_inference_server(
        repository,
        address="127.0.0.1:0",
        control=models,
        regions=SharedMemoryRegions("dovetail_conformance_"),
        tracer=tracer,
        port_file=port_file,
        front_ends=FrontEndOptions(front_ends) if front_ends else None,
    )
    await stop.wait()
    await rpc.stop(grace_s=1.0)
    await tracer.close()
    await models.close()
    await repository.close()
    await replies.close()


if __name__ == "__main__":
    configure("conformance", json=False)
    sys.exit(run_until_stopped(lambda stop: serve(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), stop)))
