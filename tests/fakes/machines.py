# SPDX-License-Identifier: Apache-2.0
"""Machines, contracts and manifests in one line, for tests of rules and negotiation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dovetail.artifact import ChunkRef, FileEntry, Manifest
from dovetail.benchmark import BenchmarkRecord
from dovetail.contract import Contract
from dovetail.digest import digest_of
from dovetail.fingerprint import Accelerator, ClassFacts, Fingerprint, InstanceFacts, RuntimeLibrary
from dovetail.gate import GateReport
from dovetail.recipe import Recipe
from dovetail.rules import ModelFacts
from dovetail.tensor import TensorSpec

AVX2 = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"})
VNNI = AVX2 | {"avx512_vnni", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
BF16 = VNNI | {"avx512_bf16"}
PI4 = frozenset({"asimd", "fp"})
PI5 = PI4 | {"asimddp", "asimdhp"}

FACTS = ModelFacts(21, 10, 1 << 20, True, frozenset({"Conv", "Gemm", "Relu"}))


def machine(
    arch: str = "x86_64",
    features: frozenset[str] = AVX2,
    *,
    gpu: Accelerator | None = None,
    free_mib: int = 4096,
    total_mib: int = 8192,
    class_facts: dict[str, Any] | None = None,
    details: dict[str, dict[str, str]] | None = None,
    **versions: str,
) -> Fingerprint:
    """A machine with the named libraries: `machine(onnxruntime="1.31.1")`; OpenVINO and torch only if named."""
    devices = {"onnxruntime": ("CPUExecutionProvider",), "openvino": ("CPU",)}
    runtimes = {
        name: RuntimeLibrary(version, devices.get(name, ()), (details or {}).get(name, {}))
        for name, version in (versions or {"onnxruntime": "1.31.1"}).items()
    }
    facts = ClassFacts(
        arch=arch,
        cpu_features=features,
        usable_cores=2,
        memory_bytes=total_mib << 20,
        accelerators=(gpu,) if gpu else (),
        runtimes=runtimes,
    )
    return Fingerprint(replace(facts, **(class_facts or {})), InstanceFacts(memory_available_bytes=free_mib << 20))


def nvidia(capability: str, product: str = "NVIDIA L4", cuda: str = "13.0", **facts: Any) -> Accelerator:
    """An NVIDIA GPU with 16 GiB."""
    values = {"memory_bytes": 16 << 30, "driver": "580.65", **facts}
    return Accelerator("nvidia_gpu", product, compute_capability=capability, cuda=cuda, **values)


def contract(engine: str = "onnxruntime", precision: str = "fp32", device: str = "cpu", **details: Any) -> Contract:
    """A contract with these details and nothing else."""
    return Contract(engine, device, precision, details=details)


def record(class_key: str, p50_ms: float = 1.0, **values: Any) -> BenchmarkRecord:
    """Figures of one class."""
    known = {"p99_ms": p50_ms * 1.5, "throughput": 1000 / p50_ms, "batch": 1, **values}
    return BenchmarkRecord(
        hardware_class=class_key,
        threads=2,
        samples=1000,
        windows=3,
        steady=known.pop("steady", True),
        p50_ms=p50_ms,
        p95_ms=p50_ms * 1.2,
        load_ms=5.0,
        **known,
    )


def manifest(
    key: object,
    what: Contract,
    *,
    name: str = "",
    size: int = 1000,
    accuracy: float | None = None,
    benchmarks: tuple[BenchmarkRecord, ...] = (),
    verified: str = "native",
    passed: bool = True,
) -> Manifest:
    """An artifact of that contract."""
    digest = digest_of(key)
    gate = GateReport(passed, what.precision, 64, metric="accuracy", metric_candidate=accuracy)
    return Manifest(
        artifact_key=digest,
        model="digits",
        version=1,
        model_digest=digest_of("digits"),
        recipe=Recipe(name or f"{what.engine}-{what.precision}", what.engine, what.device, what.precision),
        contract=what,
        inputs=(TensorSpec("image", "FP32", (-1, 1, 8, 8)),),
        outputs=(TensorSpec("logits", "FP32", (-1, 10)),),
        max_batch_size=32,
        toolchain={},
        gate=gate,
        files=(FileEntry("model.onnx", "model", size, digest, (ChunkRef(digest, size),)),),
        benchmarks=benchmarks,
        verified=verified,
    )
