# SPDX-License-Identifier: Apache-2.0
"""Turns what a build made into an artifact: files into the content store, then the manifest that names them.

The order matters: chunks, then manifest, then the job queue's atomic flip (the loop's part), so that whatever becomes
visible is complete.
"""

from __future__ import annotations

from compiler_svc.proving import same_silicon
from compiler_svc.worker.build_spec import BuildResult
from dovetail.artifact import FileEntry, Manifest
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import hardware_class
from dovetail.pb.v1.storage_pb2 import BuildJob, ModelRecord
from dovetail.store.base import ChunkStore
from dovetail.store.chunking import Chunker
from dovetail.store.files import store_file
from dovetail.wire import read_export_check, read_tensor_spec


async def store_result(store: ChunkStore, result: BuildResult, chunker: Chunker) -> tuple[FileEntry, ...]:
    """Put the files of a build into the content store, cut as the chunker says.

    Raises:
        UnavailableError: The store does not answer.
        OverLimitError: No room.
    """
    entries: list[FileEntry] = []
    for file in result.files:
        digest, size_bytes, chunks = await store_file(store, file.path, chunker=chunker)
        entries.append(FileEntry(file.name, file.role, size_bytes, digest, chunks))
    return tuple(entries)


def manifest_of(
    job: BuildJob,
    record: ModelRecord,
    result: BuildResult,
    files: tuple[FileEntry, ...],
    *,
    machine: Fingerprint,
    built_at_ms: int,
) -> Manifest:
    """The manifest of a build.

    Args:
        job: What was ordered.
        record: The model version it was built from.
        result: What came out.
        files: As stored.
        machine: This machine.
        built_at_ms: Wall clock.
    """
    model = record.model
    return Manifest(
        artifact_key=job.artifact_key,
        model=model.name,
        version=model.version,
        model_digest=model.model_digest,
        recipe=result.recipe,
        contract=result.contract,
        inputs=tuple(read_tensor_spec(spec) for spec in model.inputs),
        outputs=tuple(read_tensor_spec(spec) for spec in model.outputs),
        max_batch_size=result.max_batch_size,
        toolchain=dict(result.toolchain),
        gate=result.gate,
        files=files,
        benchmarks=result.benchmarks,
        labels={
            **result.labels,
            **_gate_label(job),
            **_export_label(record),
            "network": "none" if "network" in result.confined else "not isolated",
        },
        built_by=hardware_class(machine).key,
        built_at_ms=built_at_ms,
        verified=_verified(job, result, machine),
        verified_isa=job.isa_class,
    )


def _export_label(record: ModelRecord) -> dict[str, str]:
    """How far the gate's reference is from the module that it was exported from, where that is known."""
    figures = read_export_check(record.model)
    return {"export_check": figures.text} if figures else {}


def _gate_label(job: BuildJob) -> dict[str, str]:
    """Where the gate ran, for people and for who wants to repeat it."""
    return {"gate_ran_on": f"{job.isa_class} ({job.emulation or 'native'})"} if job.isa_class else {}


def _verified(job: BuildJob, result: BuildResult, machine: Fingerprint) -> str:
    """How the gate ran. On the CPU that holds for the class it ran on; other devices have to be equal to the target."""
    if job.isa_class or same_silicon(machine, Fingerprint.from_bytes(job.target_fingerprint_json), job.recipe.device):
        return result.verified
    return "no"
