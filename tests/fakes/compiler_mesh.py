# SPDX-License-Identifier: Apache-2.0
"""The real compiler service, and on request a real worker, in this process on a real Redis and a free port.

Nothing here is a fake but the place: stores, gRPC, child processes and backends are those of production.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio

from compiler_svc.backends import all_backends
from compiler_svc.collection.room import ResultRoom
from compiler_svc.jobs.base import Lease
from compiler_svc.server import serving
from compiler_svc.settings import CompilerSettings
from compiler_svc.storage import Storage, open_storage
from compiler_svc.worker.build_spec import ChildLimits
from compiler_svc.worker.capabilities import worker_record
from compiler_svc.worker.emulation.discovery import FoundEmulation
from compiler_svc.worker.leased_build import BuildOptions, BuildRunner, LeasedBuild
from compiler_svc.worker.loop import LoopOptions, WorkerLoop
from compiler_svc.worker.sandbox import run_build
from compiler_svc.worker.signing import Signer
from dovetail.clock import SystemClock
from dovetail.fingerprint import Fingerprint
from dovetail.pb.v1 import compiler_pb2, registry_pb2, types_pb2
from dovetail.pb.v1.artifacts_pb2_grpc import ArtifactCacheStub
from dovetail.pb.v1.compiler_pb2_grpc import CompilerStub
from dovetail.pb.v1.fleet_pb2_grpc import FleetStub
from dovetail.pb.v1.registry_pb2_grpc import ModelRegistryStub
from dovetail.pb.v1.storage_pb2 import ModelRecord, StoredFile, WorkerRecord
from dovetail.rpc.channel import open_channel
from dovetail.rpc.server import RpcServer
from dovetail.store.files import store_file
from dovetail.trust.keys import SigningKey
from dovetail.wire import chunk_message
from tests.fakes.signing import WORKER_KEY

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
ROLES = {
    "model": registry_pb2.FILE_ROLE_MODEL,
    "external": registry_pb2.FILE_ROLE_EXTERNAL_DATA,
    "calibration": registry_pb2.FILE_ROLE_CALIBRATION,
    "validation": registry_pb2.FILE_ROLE_VALIDATION,
    "program": registry_pb2.FILE_ROLE_PROGRAM,
    "reference": registry_pb2.FILE_ROLE_REFERENCE,
}
Request = registry_pb2.PushModelRequest


@dataclass(frozen=True)
class Mesh:
    """A running compiler service and stubs for it."""

    settings: CompilerSettings
    storage: Storage
    rpc: RpcServer
    channel: grpc.aio.Channel
    models: Any
    compiler: Any
    artifacts: Any
    fleet: Any

    @property
    def scratch(self) -> Path:
        return self.settings.scratch

    async def push(self, name: str, *files: tuple[str, bytes], **policy: Any) -> registry_pb2.PushModelResponse:
        return await self.models.PushModel(push_requests(name, files, **policy))

    async def push_digits(self, name: str = "digits", *, calibration: bool = True) -> registry_pb2.PushModelResponse:
        files = [("model", (DIGITS / "digits.onnx").read_bytes())]
        if calibration:
            files.append(("calibration", (DIGITS / "calibration.npz").read_bytes()))
        files.append(("validation", (DIGITS / "validation.npz").read_bytes()))
        return await self.push(name, *files)

    async def compile(self, model: str, *recipes: str, **fields: Any) -> list[compiler_pb2.BuildEvent]:
        request = compiler_pb2.CompileRequest(model=model, recipes=recipes, **fields)
        return [event async for event in self.compiler.Compile(request)]


@asynccontextmanager
async def compiler_mesh(redis_url: str, root: Path, **environ: str) -> AsyncIterator[Mesh]:
    """Run the service with its data below `root`; `environ` holds further DOVETAIL_* settings."""
    settings = CompilerSettings.from_env(
        {
            "DOVETAIL_REDIS_URL": redis_url,
            "DOVETAIL_DATA_DIR": str(root / "data"),
            "DOVETAIL_SCRATCH_DIR": str(root / "scratch"),
            "DOVETAIL_COMPILER_ADDRESS": "127.0.0.1:0",
            "DOVETAIL_STOP_GRACE_S": "0",
            **environ,
        }
    )
    storage = open_storage(settings.store, lease_s=4.0)
    try:
        async with serving(settings, storage, SystemClock()) as rpc, open_channel(f"127.0.0.1:{rpc.port}") as channel:
            yield Mesh(
                settings, storage, rpc, channel,
                ModelRegistryStub(channel), CompilerStub(channel), ArtifactCacheStub(channel), FleetStub(channel),
            )  # fmt: skip
    finally:
        await storage.aclose()


async def run_child(directory: Path, spec: Any, limits: ChildLimits, on_progress: Callable[..., None]) -> Any:
    """The real child process."""
    return await run_build(directory, spec, limits=limits, on_progress=on_progress)


@asynccontextmanager
async def worker(
    mesh: Mesh,
    machine: Fingerprint,
    *,
    run: BuildRunner = run_child,
    worker_id: str = "worker-1",
    drain_s: float = 20.0,
    lease_s: float = 4.0,
    emulations: Sequence[FoundEmulation] = (),
    signing_keys: tuple[SigningKey, ...] = (WORKER_KEY,),
    stop: asyncio.Event | None = None,
    hurry: asyncio.Event | None = None,
) -> AsyncIterator[WorkerRecord]:
    """Run a worker of that machine while the block runs, or until `stop`; with `hurry` it gives back what it builds."""
    record = worker_record(worker_id, machine, all_backends(), emulations)
    storage = open_storage(mesh.settings.store, lease_s=lease_s)
    cpus = {found.cpu.name: found.cpu for found in emulations}
    options = BuildOptions(
        machine, mesh.scratch, 1, lease_s, 0.2, ChildLimits(wall_s=240), cpus, 24, signer=Signer(signing_keys)
    )

    def task_for(lease: Lease) -> LeasedBuild:
        return LeasedBuild(
            lease,
            index=storage.index,
            jobs=storage.jobs,
            chunks=storage.chunks,
            run=run,
            options=options,
            clock=SystemClock(),
            kept=storage.kept,
            room=ResultRoom(storage.quotas, storage.pins),
        )

    times = LoopOptions(heartbeat_s=1.0, claim_wait_s=0.5, drain_s=drain_s, retry_s=0.1)
    loop = WorkerLoop(record, storage.jobs, task_for=task_for, options=times)
    stop = stop or asyncio.Event()
    await storage.jobs.heartbeat(record)
    running = asyncio.create_task(loop.run(stop, hurry))
    running.add_done_callback(_stopping(asyncio.current_task()))
    try:
        yield record
    finally:
        stop.set()
        await running
        await storage.aclose()


def _stopping(test: asyncio.Task[Any] | None) -> Callable[[asyncio.Task[None]], None]:
    """For a worker's task: a test whose worker failed is not left to wait for it."""

    def on_done(worker: asyncio.Task[None]) -> None:
        if test is not None and not worker.cancelled() and worker.exception() is not None:
            test.cancel()

    return on_done


def push_file(role: str, data: bytes, name: str = "") -> registry_pb2.PushFile:
    """A truthful announcement."""
    return registry_pb2.PushFile(
        role=ROLES[role], name=name or role, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
    )


async def push_requests(
    name: str, files: Sequence[tuple[str, bytes]], *, announced: Sequence[registry_pb2.PushFile] = (), **policy: Any
) -> AsyncIterator[registry_pb2.PushModelRequest]:
    """The messages of a push; `announced` replaces the truthful header."""
    listed = announced or [push_file(role, data) for role, data in files]
    yield Request(header=registry_pb2.PushHeader(name=name, files=listed, policy=registry_pb2.AccuracyPolicy(**policy)))
    for _, data in files:
        for start in range(0, len(data), 1 << 20):
            yield Request(data=data[start : start + (1 << 20)])


async def register_digits(mesh: Mesh, name: str = "digits", *, calibration: bool = True) -> registry_pb2.Model:
    """Put the digits model into the index without intake, for tests that need a model and not how it got there."""
    files = [("model", "digits.onnx"), ("validation", "validation.npz")]
    if calibration:
        files.append(("calibration", "calibration.npz"))
    stored = []
    for role, file in files:
        digest, size_bytes, chunks = await store_file(mesh.storage.chunks, DIGITS / file)
        listed = [chunk_message(chunk) for chunk in chunks]
        stored.append(StoredFile(role=ROLES[role], name=file, digest=digest, size_bytes=size_bytes, chunks=listed))
    model = registry_pb2.Model(
        name=name,
        model_digest=hashlib.sha256(b"digits").hexdigest(),
        opset=17,
        ir_version=8,
        inputs=[types_pb2.TensorSpec(name="image", datatype="FP32", shape=[-1, 1, 8, 8])],
        outputs=[types_pb2.TensorSpec(name="logits", datatype="FP32", shape=[-1, 10])],
        calibration_samples=128 if calibration else 0,
        validation_samples=256,
        labelled=True,
        policy=registry_pb2.AccuracyPolicy(task="classification", label_array="label"),
        parameter_bytes=1_675_432,
        operators=["Conv", "Gemm", "Relu"],
    )
    record, _ = await mesh.storage.index.add_model(ModelRecord(model=model, files=stored))
    return record.model


def machine_of(name: str) -> Fingerprint:
    """One of the machines below tests/fingerprints."""
    return Fingerprint.from_bytes((DIGITS.parents[1] / "tests" / "fingerprints" / f"{name}.json").read_bytes())
