# SPDX-License-Identifier: Apache-2.0
"""Workers with GPUs that nobody here has: their records, with the tools that they would advertise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from compiler_svc.toolchain import advertised
from dovetail.fingerprint import Fingerprint, RuntimeLibrary
from dovetail.pb.v1.storage_pb2 import WorkerRecord
from tests.fakes.compiler_mesh import machine_of

L4, L4_11, L4_PLAIN = (machine_of(f"nvidia-l4{suffix}") for suffix in ("", "-tensorrt-11", "-no-tensorrt"))
H100, T4, GB10 = machine_of("nvidia-h100"), machine_of("nvidia-t4"), machine_of("gb10")
ORIN, THOR, XEON = machine_of("jetson-orin-nx"), machine_of("jetson-thor"), machine_of("xeon-skylake-no-vnni")


def with_tensorrt(machine: Fingerprint, version: str, **details: str) -> Fingerprint:
    library = RuntimeLibrary(version, ("cuda",), {"package": "tensorrt-cu13", **details})
    return replace(machine, facts=replace(machine.facts, runtimes={**machine.facts.runtimes, "tensorrt": library}))


def allowing(machine: Fingerprint) -> Fingerprint:
    """The same, where the operator allows the host code of signed artifacts."""
    library = machine.facts.runtimes["tensorrt"]
    return with_tensorrt(machine, library.version, host_code_allowed="true")


def worker_with(worker_id: str, machine: Fingerprint) -> WorkerRecord:
    """A worker that builds with every library its machine has."""
    tools: Mapping[str, Mapping[str, str]] = {
        name: {name: library.version, "backend": "1"} for name, library in machine.facts.runtimes.items()
    }
    return WorkerRecord(
        id=worker_id, fingerprint_json=machine.to_bytes(), engines=sorted(tools), toolchain=advertised(tools)
    )


OLD, NEW = worker_with("trt10", L4), worker_with("trt11", L4_11)
"""An L4 with TensorRT 10 and one with 11."""
