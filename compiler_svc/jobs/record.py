# SPDX-License-Identifier: Apache-2.0
"""How a build's state in Redis reads as a `Build`, and how jobs and workers are matched.

The scripts cannot read protobuf, so what they decide by (phase, message, attempts, times) is kept in plain fields
beside the encoded record and wins over it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import cast

from compiler_svc.proving import device_word
from dovetail.artifact import Manifest
from dovetail.digest import canonical_json
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import isa_class
from dovetail.pb.v1.compiler_pb2 import (
    BUILD_PHASE_CANCELLED,
    BUILD_PHASE_FAILED,
    BUILD_PHASE_READY,
    Attempt,
    Build,
    BuildFailure,
    BuildPhase,
    BuildPriority,
)
from dovetail.pb.v1.storage_pb2 import BuildJob, WorkerRecord
from dovetail.store.redis_connection import Reply
from dovetail.wire import benchmark_bytes, gate_bytes, recipe_message

_ISA_CLASS = "isa_class"  # among tools: the worker's own CPU

ENDED = (BUILD_PHASE_READY, BUILD_PHASE_FAILED, BUILD_PHASE_CANCELLED)

State = Mapping[bytes, bytes]
"""Fields of a job's HASH or of one event."""


def read_pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """Fields from the flat list in which a script returns them."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def read_state(entry: Reply) -> tuple[BuildJob, State] | Build | None:
    """One entry of a snapshot: a job and its state, or the build of a manifest that outlived its job, or None."""
    flat, manifest = entry
    if flat:
        state = read_pairs(flat)
        return BuildJob.FromString(state[b"job"]), state
    return ready_build(manifest) if manifest else None


def build_of(job: BuildJob, state: State) -> Build:
    """The build as it is shown to users."""
    build = Build.FromString(state[b"build"]) if state.get(b"build") else Build()
    build.artifact_key, build.model, build.version = job.artifact_key, job.model, job.version
    build.recipe.CopyFrom(job.recipe)
    build.hardware_class = job.hardware_class
    build.phase = cast(BuildPhase, int(state[b"phase"]))
    build.message = state[b"message"].decode()
    build.attempts = int(state[b"attempts"])
    build.created_at_ms = int(state[b"created"])
    build.updated_at_ms = int(state[b"updated"])
    build.priority = cast(BuildPriority, int(state.get(b"priority") or 0))
    build.log_tail = state.get(b"log", b"").decode(errors="replace")
    build.cached = False
    build.ClearField("failure")
    if build.phase == BUILD_PHASE_FAILED:
        build.failure.CopyFrom(BuildFailure.FromString(state[b"failure"]))
    if build.phase == BUILD_PHASE_READY:
        build.fraction = 1.0
    return build


def attempts_of(state: State) -> list[Attempt]:
    """The last attempts at a job, oldest first."""
    entries = json.loads(state.get(b"history", b"[]").decode(errors="replace"))
    return [
        Attempt(worker=entry["w"], began_ms=int(entry["b"]), ended_ms=int(entry["e"] or 0), why=entry["y"])
        for entry in entries
    ]


def ready_build(manifest: bytes) -> Build:
    """The build that a published manifest is the result of, when its own record is gone."""
    artifact = Manifest.from_bytes(manifest)
    return Build(
        artifact_key=artifact.artifact_key,
        model=artifact.model,
        version=artifact.version,
        recipe=recipe_message(artifact.recipe),
        hardware_class=artifact.built_by,
        phase=BUILD_PHASE_READY,
        fraction=1.0,
        message="published earlier",
        gate_json=gate_bytes(artifact.gate),
        benchmark_json=benchmark_bytes(artifact.benchmarks[0]) if artifact.benchmarks else b"",
        size_bytes=artifact.size_bytes,
        created_at_ms=artifact.built_at_ms,
        updated_at_ms=artifact.built_at_ms,
        cached=True,
    )


def queue_of(job: BuildJob) -> str:
    """Name of the queue that a job waits in."""
    return f"{job.engine}/{job.arch}"


def tools_of(job: BuildJob) -> bytes:
    """What a worker must have, for the scripts: the tools that the key was made with and the CPU that the gate needs.

    The scripts compare texts by name, so the CPU is one more name: the class that the worker is of, or one that it
    emulates by that very emulation. So is the device of an artifact that does not run on the CPU.
    """
    needed = dict(job.toolchain)
    if job.emulation:
        needed[_emulation(job.emulation)] = job.isa_class
    elif job.isa_class:
        needed[_ISA_CLASS] = job.isa_class
    if job.accelerator:
        needed[_accelerator(job.accelerator)] = job.accelerator
    return canonical_json(needed)


def needs_of(job: BuildJob) -> str:
    """What a worker must have, for people."""
    tools = ", ".join(f"{tool} {version}" for tool, version in sorted(job.toolchain.items()))
    place = f" on {job.arch}" if job.arch else ""
    if job.emulation:
        place += f" that emulates {job.isa_class} by {job.emulation}"
    elif job.isa_class:
        place += f" with a CPU of class {job.isa_class}"
    if job.accelerator:
        place += f" with a device {job.accelerator}"
    return f"engine {job.engine}" + place + (f" ({tools})" if tools else "")


def queues_of(worker: WorkerRecord) -> list[str]:
    """Names of the queues that a worker takes jobs from; none while it is draining. Raises InvalidInputError."""
    arch = Fingerprint.from_bytes(worker.fingerprint_json).facts.arch
    engines = () if worker.draining else sorted(worker.engines)
    return [f"{engine}/{place}" for engine in engines for place in (arch, "")]


def capabilities_of(worker: WorkerRecord) -> bytes:
    """What a worker can build, for the scripts: the queues it serves, its exact tools, and its CPUs as `tools_of` says.

    Raises:
        InvalidInputError: Its fingerprint is not readable.
    """
    facts = Fingerprint.from_bytes(worker.fingerprint_json).facts
    cpus = {_ISA_CLASS: isa_class(facts.arch, facts.cpu_features)}
    cpus |= {_emulation(item.name): item.isa_class for item in worker.emulates}
    devices = {_accelerator(word): word for word in map(device_word, facts.accelerators)}
    return canonical_json({"queues": queues_of(worker), "toolchain": {**worker.toolchain, **cpus, **devices}})


def _accelerator(word: str) -> str:
    """What a device is called among tools."""
    return f"accelerator:{word}"


def _emulation(name: str) -> str:
    """What an emulation is called among tools; no engine's tools have such names ("<engine>/<tool>")."""
    return f"emulation:{name}"
