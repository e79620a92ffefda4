# SPDX-License-Identifier: Apache-2.0
"""What this worker can build: its machine, its backends, their exact tools, and the CPUs it emulates for the gate."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from compiler_svc.backends import BackendModule
from compiler_svc.toolchain import advertised
from compiler_svc.worker.emulation.discovery import FoundEmulation
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import hardware_class
from dovetail.pb.v1.storage_pb2 import Emulation, WorkerRecord

_log = logging.getLogger(__name__)


def worker_record(
    worker_id: str,
    machine: Fingerprint,
    backends: Mapping[str, BackendModule],
    emulations: Iterable[FoundEmulation] = (),
) -> WorkerRecord:
    """The record that the worker advertises; backends whose libraries are missing are left out and logged."""
    toolchains: dict[str, Mapping[str, str]] = {}
    for engine, backend in sorted(backends.items()):
        missing = backend.missing()
        if missing:
            _log.info("worker.backend_missing engine=%s why=%r", engine, missing)
        else:
            toolchains[engine] = backend.toolchain()
    return WorkerRecord(
        id=worker_id,
        fingerprint_json=machine.to_bytes(),
        engines=sorted(toolchains),
        toolchain=advertised(toolchains),
        hardware_class=hardware_class(machine).key,
        emulates=[_emulation(found) for found in emulations],
    )


def _emulation(found: FoundEmulation) -> Emulation:
    cpu = found.cpu
    return Emulation(
        name=cpu.name,
        isa_class=cpu.isa_class,
        arch=cpu.arch,
        cpu_features=sorted(cpu.cpu_features),
        engines=found.engines,
        precisions=found.precisions,
    )
