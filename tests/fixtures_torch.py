# SPDX-License-Identifier: Apache-2.0
"""One program built by a real worker into AOTInductor packages and a baseline, once for each test process.

Everything is that of production: the service, the worker, the confined child, the C++ compiler. What came out is handed
over as plain values, with what the service offered to several machines, so that the tests need no service any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from dovetail.artifact import Manifest
from dovetail.fingerprint import Fingerprint, RuntimeLibrary
from dovetail.hardware_class import features_of_isa
from dovetail.pb.v1 import artifacts_pb2, compiler_pb2, registry_pb2, types_pb2
from dovetail.pb.v1.storage_pb2 import ModelRecord, StoredFile
from dovetail.store.files import load_file, store_file
from dovetail.wire import chunk_message
from tests.fakes.compiler_mesh import Mesh, compiler_mesh, worker
from tests.fakes.tiny_program import INPUTS, OUTPUTS, make_tiny_program
from tests.fixtures_redis import RedisServer

HOST, PORTABLE, BASELINE = "aoti-cpu", "aoti-cpu-v3", "torch-eager"
MODEL = "tiny"
_TORCH = "2.13.0"


@dataclass(frozen=True)
class BuiltProgram:
    """What the worker made.

    Attributes:
        folder: Where model.onnx and program.pt2 are.
        manifests: Recipe -> manifest.
        files: Recipe -> file name -> path, named by digest as on a node.
        offers: Machine ("here", "smaller cpu", "newer torch") -> what it was offered.
        builds: Recipe -> the build's last event.
    """

    folder: Path
    manifests: Mapping[str, Manifest]
    files: Mapping[str, Mapping[str, Path]]
    offers: Mapping[str, artifacts_pb2.Offer]
    builds: Mapping[str, compiler_pb2.Build]

    def content(self, recipe: str) -> dict[str, bytes]:
        """File name -> bytes."""
        return {name: path.read_bytes() for name, path in self.files[recipe].items()}


@pytest.fixture(scope="session")
def built_program(tmp_path_factory: pytest.TempPathFactory, fingerprint: Fingerprint) -> Iterator[BuiltProgram]:
    """Both packages and the eager baseline; takes about a minute of two cores."""
    folder = tmp_path_factory.mktemp("tiny-program")
    server = RedisServer()
    server.start()
    try:
        make_tiny_program(folder)
        yield asyncio.run(_build(folder, server.url, fingerprint))
    finally:
        server.close()


async def _build(folder: Path, redis_url: str, here: Fingerprint) -> BuiltProgram:
    async with compiler_mesh(redis_url, folder) as mesh:
        await _register(mesh, folder)
        async with worker(mesh, here, lease_s=30.0):
            events = await mesh.compile(MODEL, HOST, PORTABLE, BASELINE, fingerprint_json=here.to_bytes())
        offers = {name: await _offered(mesh, machine) for name, machine in machines(here).items()}
        builds = {event.build.recipe.name: event.build for event in events}
        manifests = {name: await _manifest(mesh, build.artifact_key) for name, build in builds.items()}
        files = {name: await _files(mesh, manifest, folder / name) for name, manifest in manifests.items()}
    return BuiltProgram(folder, manifests, files, offers, builds)


def machines(here: Fingerprint) -> dict[str, Fingerprint]:
    """This machine, the same with a smaller CPU, the same with a newer torch."""
    smaller = replace(here.facts, cpu_features=features_of_isa("x86-64-v2"))
    newer = replace(here.facts, runtimes={**here.facts.runtimes, "torch": RuntimeLibrary("2.14.0+cpu", ("cpu",))})
    return {"here": here, "smaller cpu": replace(here, facts=smaller), "newer torch": replace(here, facts=newer)}


async def _register(mesh: Mesh, folder: Path) -> None:
    stored = []
    for role, name in ((registry_pb2.FILE_ROLE_MODEL, "model.onnx"), (registry_pb2.FILE_ROLE_PROGRAM, "program.pt2")):
        digest, size_bytes, chunks = await store_file(mesh.storage.chunks, folder / name)
        listed = [chunk_message(chunk) for chunk in chunks]
        stored.append(StoredFile(role=role, name=name, digest=digest, size_bytes=size_bytes, chunks=listed))
    model = registry_pb2.Model(
        name=MODEL,
        model_digest=stored[0].digest,
        opset=18,
        ir_version=10,
        inputs=[types_pb2.TensorSpec(name=s.name, datatype=s.datatype, shape=s.shape) for s in INPUTS],
        outputs=[types_pb2.TensorSpec(name=s.name, datatype=s.datatype, shape=s.shape) for s in OUTPUTS],
        operators=["Gemm", "Mul", "Relu", "Softmax"],
        program=_TORCH,
    )
    await mesh.storage.index.add_model(ModelRecord(model=model, files=stored))


async def _offered(mesh: Mesh, machine: Fingerprint) -> artifacts_pb2.Offer:
    request = artifacts_pb2.NegotiateRequest(model=MODEL, fingerprint_json=machine.to_bytes())
    return await mesh.artifacts.Negotiate(request)


async def _manifest(mesh: Mesh, key: str) -> Manifest:
    reply = await mesh.artifacts.GetManifest(artifacts_pb2.GetManifestRequest(artifact_key=key))
    return Manifest.from_bytes(reply.manifest_json)


async def _files(mesh: Mesh, manifest: Manifest, into: Path) -> dict[str, Path]:
    into.mkdir()
    found = {entry.name: into / entry.digest for entry in manifest.files}
    for entry in manifest.files:
        await load_file(mesh.storage.chunks, entry.chunks, found[entry.name], entry.digest)
    return found
