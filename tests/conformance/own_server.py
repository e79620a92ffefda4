# SPDX-License-Identifier: Apache-2.0
"""Dovetail's own server with the suite's models, as a process of its own: what the suite asks unless told otherwise.

    python -m tests.conformance.own_server FOLDER PORT_FILE

Server, queue and engine are the real ones; only the way of the models into the repository is short: they are loaded
from the folder instead of being negotiated. A load brings a model back that was unloaded.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from dovetail.engines import SessionOptions, create_engine
from dovetail.errors import NotFoundError
from dovetail.log import configure
from dovetail.rpc.lifecycle import run_until_stopped
from dovetail.tensor import TensorSpec
from runtime_svc.repository import Repository
from runtime_svc.served_model import ModelFacts, ServedModel
from runtime_svc.server import start_inference_server
from runtime_svc.shared_memory import SharedMemoryRegions
from runtime_svc.trace import Tracer
from tests.conformance.models import MODELS, TestedModel, write_models

ARTIFACT = "c" * 64


class FolderControl:
    """Takes the suite's models into service and out of it."""

    def __init__(self, repository: Repository, folder: Path) -> None:
        self._repository = repository
        self._folder = folder
        self._models = {model.name: model for model in MODELS}

    async def load(self, name: str, version: int | None) -> None:
        """Serve a model of the folder."""
        if name not in self._models or version not in (None, 1):
            raise NotFoundError(f"there is no model '{name}'" + (f" of version {version}" if version else ""))
        self._repository.begin_loading(name, 1)
        self._repository.install(await asyncio.to_thread(self._open, self._models[name]))

    async def unload(self, name: str) -> None:
        """Serve it no longer."""
        await self._repository.unload(name)

    def open_all(self) -> None:
        """Serve every model."""
        for model in self._models.values():
            self._repository.install(self._open(model))

    def _open(self, model: TestedModel) -> ServedModel:
        file = self._folder / model.name / "1/model.onnx"
        session = create_engine("onnxruntime").load({"model.onnx": file}, SessionOptions(threads=1))
        inputs, outputs = (
            tuple(TensorSpec(name, datatype, shape) for name, (datatype, shape) in tensors.items())
            for tensors in (model.inputs, model.outputs)
        )
        facts = ModelFacts(model.name, 1, inputs, outputs, model.max_batch_size, ARTIFACT, "ort-fp32", "onnxruntime")
        return ServedModel.start(facts, [session])


async def serve(folder: Path, port_file: Path, stop: asyncio.Event) -> None:
    """Serve until told to stop."""
    await asyncio.to_thread(write_models, folder)
    repository, tracer = Repository(), Tracer(folder / "trace.json")
    control = FolderControl(repository, folder)
    control.open_all()
    rpc = await start_inference_server(
        repository,
        address="127.0.0.1:0",
        control=control,
        regions=SharedMemoryRegions("dovetail_conformance_"),
        tracer=tracer,
        port_file=port_file,
    )
    await stop.wait()
    await rpc.stop(grace_s=1.0)
    await tracer.close()
    await repository.close()


if __name__ == "__main__":
    configure("conformance", json=False)
    sys.exit(run_until_stopped(lambda stop: serve(Path(sys.argv[1]), Path(sys.argv[2]), stop)))
