# SPDX-License-Identifier: Apache-2.0
"""What is asked of each server, and one measurement of it."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import grpc
import numpy as np

from dovetail.pb import oip
from tests.bench.serving.models import FEATURES, LARGE, LARGE_BYTES, MLP
from tests.bench.serving.servers import Running

PATH = f"/{oip.SERVICE}/"
REGION = "dovetail_bench_region"


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of load.

    Attributes:
        name: For the table.
        model: Which is asked.
        concurrency: Requests in flight.
        stream: On one stream, instead of a call for each.
        regions: Tensors in shared memory.
    """

    name: str
    model: str
    concurrency: int
    stream: bool = False
    regions: bool = False

    def fits(self, running: Running) -> bool:
        """True if the server can do that."""
        return (running.server.streams or not self.stream) and (running.server.regions or not self.regions)


CASES: Sequence[Case] = (
    Case("unary, 8 at once", MLP, 8),
    Case("unary, 32 at once", MLP, 32),
    Case("streamed, 8 at once", MLP, 8, stream=True),
    Case("streamed, 32 at once", MLP, 32, stream=True),
    Case("1 MiB in and out, 4 at once", LARGE, 4),
    Case("1 MiB in shared memory, 4 at once", LARGE, 4, regions=True),
)


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement.

    Attributes:
        cpu_us: CPU time of all of the server's processes for a request.
        per_s: Requests a second.
        p50_ms: Of the latency.
        p99_ms: Likewise.
        client_cpu_us: The load generator's own CPU time for a request.
    """

    cpu_us: float
    per_s: float
    p50_ms: float
    p99_ms: float
    client_cpu_us: float


class CaseError(Exception):
    """A server did not do what was asked."""


def small_request() -> oip.ModelInferRequest:
    """One row for the small network."""
    request = oip.ModelInferRequest(model_name=MLP)
    request.inputs.add(name="x", datatype="FP32", shape=[1, FEATURES])
    request.outputs.add(name="y")
    request.raw_input_contents.append(small_row().tobytes())
    return request


def small_row() -> np.ndarray:
    """What it holds."""
    return np.linspace(-1, 1, FEATURES, dtype=np.float32).reshape(1, -1)


def measure(case: Case, running: Running, folder: Path, *, seconds: float, warmup_s: float) -> Measured:
    """Load a server.

    Raises:
        CaseError: It failed requests, or cannot do this.
    """
    with _request(case, running) as request:
        path = folder / "request.bin"
        path.write_bytes(request.SerializeToString())
        load = {
            "address": running.address,
            "path": PATH + ("ModelStreamInfer" if case.stream else "ModelInfer"),
            "request": str(path),
            "concurrency": case.concurrency,
            "stream": case.stream,
            "seconds": seconds,
            "warmup_s": warmup_s,
            "server": running.process,
            "metadata": running.server.metadata,
        }
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.serving.load", json.dumps(load)],
            capture_output=True, text=True, timeout=seconds + warmup_s + 60, check=False,
        )  # fmt: skip
    if done.returncode:
        raise CaseError(done.stderr.strip().splitlines()[-1])
    outcome = json.loads(done.stdout)
    if outcome["failures"] or not outcome["answers"]:
        raise CaseError(f"{outcome['failures']} of {outcome['failures'] + outcome['answers']} requests failed")
    answers = outcome["answers"]
    return Measured(
        cpu_us=1e6 * outcome["server_cpu_s"] / answers,
        per_s=answers / outcome["seconds"],
        p50_ms=outcome["p50_ms"],
        p99_ms=outcome["p99_ms"],
        client_cpu_us=1e6 * outcome["own_cpu_s"] / answers,
    )


@contextmanager
def _request(case: Case, running: Running) -> Iterator[oip.ModelInferRequest]:
    if case.model == MLP:
        yield small_request()
        return
    values = np.arange(LARGE_BYTES // 4, dtype=np.float32)
    request = oip.ModelInferRequest(model_name=LARGE)
    request.inputs.add(name="x", datatype="FP32", shape=[1, values.size])
    request.outputs.add(name="y")
    if not case.regions:
        request.raw_input_contents.append(values.tobytes())
        yield request
        return
    memory = SharedMemory(f"dovetail_bench_{uuid.uuid4().hex}", create=True, size=2 * LARGE_BYTES)
    try:
        memory.buf[:LARGE_BYTES] = values.tobytes()
        for tensor, offset in ((request.inputs[0], 0), (request.outputs[0], LARGE_BYTES)):
            tensor.parameters["shared_memory_region"].string_param = REGION
            tensor.parameters["shared_memory_byte_size"].int64_param = LARGE_BYTES
            tensor.parameters["shared_memory_offset"].int64_param = offset
        with _registered(memory, running):
            yield request
        if memory.buf[LARGE_BYTES:] != values.tobytes():
            raise CaseError("the output in shared memory is not the input")
    finally:
        memory.close()
        memory.unlink()


@contextmanager
def _registered(memory: SharedMemory, running: Running) -> Iterator[None]:
    with grpc.insecure_channel(running.address) as channel:
        stub, metadata = oip.Stub(channel), running.server.metadata
        try:
            stub.SystemSharedMemoryRegister(
                oip.SystemSharedMemoryRegisterRequest(name=REGION, key=f"/{memory.name}", byte_size=memory.size),
                metadata=metadata,
            )
        except grpc.RpcError as error:
            raise CaseError(f"{error.code().name}: {error.details()}") from error
        try:
            yield
        finally:
            with suppress(grpc.RpcError):  # Triton refuses while a request of a load that has ended still runs
                stub.SystemSharedMemoryUnregister(
                    oip.SystemSharedMemoryUnregisterRequest(name=REGION), metadata=metadata
                )
