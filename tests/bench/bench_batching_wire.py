# SPDX-License-Identifier: Apache-2.0
"""What a whole node leaves of an engine's throughput: over gRPC, everything on, eight requests in flight.

Each net is an artifact with benchmark records that were measured just before. A runtime service takes it, chooses
instances and threads from them, and serves it to a load generator in a third process. Beside it, in alternating rounds,
as many threads as the service has instances call a session that was loaded in the same way, one row at a time. The
ratio is the median over the rounds; the processor does the work of client, gRPC and scheduler besides.

python -m tests.bench batching_wire
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dovetail.fingerprint import Fingerprint
from dovetail.probe import measure
from tests.bench.batching_nets import write_minilm, write_resnet50
from tests.bench.batching_nets_int8 import write_dynamic_int8, write_static_int8
from tests.bench.bench_batching import engine_rate
from tests.bench.figures import Figure
from tests.bench.serving.bursts import Caller
from tests.bench.serving.load import Outcome
from tests.bench.serving.node import Net, artifact_of, feeds_for, layout_of, measure_layouts, request_of, serving

CONCURRENCY = 8
ROUNDS = 5
SECONDS = 2.5
WARMUP_S = 3.0
RECORDS_S = 4.0
"""For the records of all layouts of a net."""


@dataclass(frozen=True)
class Case:
    """A net on an engine, and what of its throughput is wanted."""

    model: str
    engine: str
    precision: str
    goal: float

    @property
    def title(self) -> str:
        """For the table."""
        return f"{self.model} {self.precision}, {self.engine}"


CASES = (
    Case("resnet50", "onnxruntime", "fp32", 0.95),
    Case("minilm", "onnxruntime", "fp32", 0.92),
    Case("resnet50", "onnxruntime", "int8", 0.92),
    Case("minilm", "onnxruntime", "int8", 0.92),
    Case("resnet50", "openvino", "fp32", 0.95),
    Case("minilm", "openvino", "fp32", 0.92),
)
"""No int8 on OpenVINO: nodes refuse that on processors without VNNI."""


def run() -> list[Figure]:
    """Measure."""
    return asyncio.run(_run())


async def _run() -> list[Figure]:
    machine = await measure()
    found: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="dovetail-bench-") as name:
        folder = Path(name)
        onnx = await asyncio.to_thread(write_nets, folder)
        for number, case in enumerate(CASES):
            files = await asyncio.to_thread(_FILES[case.engine], onnx[case.model, case.precision], folder / str(number))
            net = Net(case.model, case.engine, case.precision, files)
            found += await _measured(case, net, machine, folder / f"node-{number}")
    return found


def write_nets(folder: Path) -> Mapping[tuple[str, str], Path]:
    """Model and precision -> ONNX file."""
    resnet50, minilm = write_resnet50(folder / "resnet50.onnx"), write_minilm(folder / "minilm.onnx")
    return {
        ("resnet50", "fp32"): resnet50,
        ("minilm", "fp32"): minilm,
        ("resnet50", "int8"): write_static_int8(resnet50, folder / "resnet50-int8.onnx", "image", (3, 224, 224)),
        ("minilm", "int8"): write_dynamic_int8(minilm, folder / "minilm-int8.onnx"),
    }


def _onnx_files(source: Path, target: Path) -> Mapping[str, Path]:
    return {"model.onnx": source}


def _openvino_files(source: Path, target: Path) -> Mapping[str, Path]:
    from dovetail.engines.openvino_engine import import_openvino

    library = import_openvino()
    xml = target.with_suffix(".xml")
    library.save_model(library.Core().read_model(str(source)), str(xml), compress_to_fp16=False)
    return {"model.xml": xml, "model.bin": xml.with_suffix(".bin")}


_FILES: Mapping[str, Callable[[Path, Path], Mapping[str, Path]]] = {
    "onnxruntime": _onnx_files,
    "openvino": _openvino_files,
}
"""Engine -> what makes its files of an ONNX file."""


async def _measured(case: Case, net: Net, machine: Fingerprint, folder: Path) -> list[Figure]:
    records = await asyncio.to_thread(measure_layouts, net, machine, len(os.sched_getaffinity(0)), seconds=RECORDS_S)
    artifact = await asyncio.to_thread(artifact_of, net, machine, records)
    async with serving(folder, [artifact]) as node:
        instances, threads = layout_of(node, case.model)
        session = await asyncio.to_thread(net.load, machine, (instances, threads))
        feeds = feeds_for(session.inputs)
        request = folder.with_suffix(".request")
        request.write_bytes(request_of(case.model, session.inputs).SerializeToString())
        caller = Caller(node, request)
        await caller.closed(CONCURRENCY, seconds=WARMUP_S)  # until the scheduler knows the model
        alone, served = [], []
        for _ in range(ROUNDS):
            alone.append(await asyncio.to_thread(engine_rate, session, instances, feeds, SECONDS))
            served.append(await caller.closed(CONCURRENCY, seconds=SECONDS))
        session.close()
    tried = ", ".join(f"{it.streams} x {it.threads}: {it.throughput:.3g}/s" for it in records)
    return _figures(case, alone, served, f"{instances} x {threads} threads; records {tried}")


def _figures(case: Case, alone: list[float], served: list[Outcome], how: str) -> list[Figure]:
    rates = [it.answers / it.seconds for it in served]
    ratios = [rate / engine for rate, engine in zip(rates, alone, strict=True)]
    failures = sum(it.failures for it in served)
    cpu_ms = statistics.median(1e3 * it.own_cpu_s / max(1, it.answers) for it in served)
    latencies = ", ".join(
        f"{name} {statistics.median(values):.0f} ms"
        for name, values in (("p50", [it.p50_ms for it in served]), ("p99", [it.p99_ms for it in served]))
    )
    beside = (
        f"engine {statistics.median(alone):.4g}; {latencies}; {failures} failed; client {cpu_ms:.2g} ms of CPU each"
    )
    return [
        Figure(
            f"{case.title}, gRPC: of the engine's throughput", statistics.median(ratios), "x", case.goal, False,
            f"{how}; rounds {min(ratios):.3f} to {max(ratios):.3f}",
        ),
        Figure(f"{case.title}, gRPC: throughput", statistics.median(rates), "rows/s", note=beside),
    ]  # fmt: skip
