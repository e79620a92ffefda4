# SPDX-License-Identifier: Apache-2.0
"""Small records of the index and the job queue, for tests that care about storing them and not about building."""

from __future__ import annotations

from collections.abc import Sequence

from dovetail.artifact import ChunkRef, FileEntry, Manifest
from dovetail.benchmark import BenchmarkRecord
from dovetail.contract import Contract
from dovetail.digest import sha256_hex
from dovetail.fingerprint import ClassFacts, Fingerprint
from dovetail.gate import GateReport
from dovetail.pb.v1.compiler_pb2 import Build, BuildFailure
from dovetail.pb.v1.registry_pb2 import Model
from dovetail.pb.v1.storage_pb2 import BuildJob, ModelRecord, WorkerRecord
from dovetail.recipe import Recipe
from dovetail.wire import recipe_message

RECIPE = Recipe("ort-fp32", "onnxruntime", "cpu", "fp32")


def key_of(name: str) -> str:
    """An artifact key for a readable name."""
    return sha256_hex(name.encode())


def model_record(name: str = "digits", content: str = "a") -> ModelRecord:
    """A model whose content is told apart by a letter."""
    return ModelRecord(model=Model(name=name, model_digest=sha256_hex(content.encode())))


def manifest_of(key: str, *, model: str = "digits", version: int = 1, label: str = "") -> Manifest:
    """A manifest with one chunk; `label` makes another one for the same key."""
    chunk = ChunkRef(sha256_hex(b"x"), 1)
    return Manifest(
        artifact_key=key,
        model=model,
        version=version,
        model_digest=sha256_hex(model.encode()),
        recipe=RECIPE,
        contract=Contract("onnxruntime", "cpu", "fp32"),
        inputs=(),
        outputs=(),
        max_batch_size=8,
        toolchain={},
        gate=GateReport(True, "fp32", 0),
        files=(FileEntry("model.onnx", "model", 1, sha256_hex(b"x"), (chunk,)),),
        benchmarks=(figures("class-a"),),
        labels={"label": label} if label else {},
    )


def figures(hardware_class: str, *, p50_ms: float = 1.0, reported_by: str = "build") -> BenchmarkRecord:
    """Benchmark figures."""
    return BenchmarkRecord(hardware_class, 1, 1, 100, 3, True, p50_ms, 2.0, 3.0, 1000.0, 5.0, reported_by=reported_by)


def job_for(key: str, *, model: str = "digits", version: int = 1, **fields: object) -> BuildJob:
    """A build order for onnxruntime on x86_64 unless said otherwise."""
    routing: dict[str, object] = {"engine": "onnxruntime", "arch": "x86_64"} | fields
    return BuildJob(artifact_key=key, model=model, version=version, recipe=recipe_message(RECIPE), **routing)  # type: ignore[arg-type]


def worker_record(
    worker_id: str = "w1",
    *,
    engines: Sequence[str] = ("onnxruntime",),
    arch: str = "x86_64",
    toolchain: dict[str, str] | None = None,
) -> WorkerRecord:
    """A worker with the fingerprint of a bare machine."""
    fingerprint = Fingerprint(ClassFacts(arch=arch)).to_bytes()
    return WorkerRecord(id=worker_id, fingerprint_json=fingerprint, engines=engines, toolchain=toolchain or {})


def build_in(phase: int, message: str = "") -> Build:
    """What a worker reports."""
    return Build(phase=phase, message=message, fraction=0.5)  # type: ignore[arg-type]


def failure_of(kind: int, message: str = "it did not work") -> BuildFailure:
    """A typed failure."""
    return BuildFailure(kind=kind, code="test", message=message)  # type: ignore[arg-type]
