# SPDX-License-Identifier: Apache-2.0
"""Registers models: upload, intake in a child process, content store, index, in that order.

Nothing is visible before the last step, and the scratch directory is gone whatever happens; chunks stored for a push
that failed later are harmless, since only the index says what exists. What intake checks is `compiler_svc.intake`'s
business, how the index keeps a record is `redis_index`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compiler_svc.collection.pins import Pins
from compiler_svc.collection.quota import Quotas, Reservation
from compiler_svc.expectation import refuse_other_signature
from compiler_svc.index import Index
from compiler_svc.intake.limits import PROGRAM_FILE, WEIGHTS_FILE, FleetTarget, ModelLimits
from compiler_svc.scratch import scratch_directory
from compiler_svc.upload import (
    Upload,
    UploadLimits,
    announced_bytes,
    receive_header,
    receive_upload,
    tenant_of,
)
from compiler_svc.worker.build_spec import IntakeOutcome, IntakeSpec
from compiler_svc.worker.child_failure import ChildFailure
from dovetail.accuracy import DEFAULT_LABEL_ARRAY
from dovetail.clock import Clock
from dovetail.digest import check_name
from dovetail.errors import InvalidInputError
from dovetail.gate import check_policy
from dovetail.pb.v1 import registry_pb2 as pb
from dovetail.pb.v1.storage_pb2 import ModelRecord, StoredFile
from dovetail.store.base import ChunkStore
from dovetail.store.files import store_file
from dovetail.wire import chunk_message, export_check_message, range_message, read_policy, tensor_spec_message

_log = logging.getLogger(__name__)

IntakeRunner = Callable[[Path, IntakeSpec], Awaitable[IntakeOutcome | ChildFailure]]
"""Checks and normalises the files in a directory, in a child process."""


@dataclass(frozen=True, slots=True)
class RegistryOptions:
    """How pushes are handled.

    Attributes:
        scratch: Directory for uploads; the model must fit twice.
        upload: Limits of the upload.
        model: Limits of intake.
        target: Newest stamps that the fleet loads.
        concurrent_intakes: Child processes at once; more pushes wait after their upload.
    """

    scratch: Path
    upload: UploadLimits = field(default_factory=UploadLimits)
    model: ModelLimits = field(default_factory=ModelLimits)
    target: FleetTarget = field(default_factory=FleetTarget)
    concurrent_intakes: int = 2


@dataclass(frozen=True, slots=True)
class _KeptFile:
    """A file of a model version that is kept: its role, its name in the record, and where it is now."""

    role: pb.FileRole
    name: str
    path: Path


class ModelRegistry:
    """Pushing and naming models; safe for concurrent calls of one event loop."""

    def __init__(
        self,
        index: Index,
        store: ChunkStore,
        *,
        quotas: Quotas,
        pins: Pins,
        run_intake: IntakeRunner,
        clock: Clock,
        options: RegistryOptions,
    ) -> None:
        self._index = index
        self._store = store
        self._quotas = quotas
        self._pins = pins
        self._run_intake = run_intake
        self._clock = clock
        self._options = options
        self._intakes = asyncio.Semaphore(options.concurrent_intakes)

    async def push(self, parts: AsyncIterator[pb.PushModelRequest]) -> pb.PushModelResponse:
        """Register what the stream brings.

        Raises:
            InvalidInputError: The stream, the model or the samples are wrong.
            OverLimitError: Over a limit or the tenant's quota, or no room.
            UnsupportedError: An opset or operator that no backend supports.
            UnavailableError: The index or store does not answer; nothing was registered.
        """
        header = await receive_header(parts, self._options.upload)
        what = f"push of {header.name}"
        async with self._quotas.reserved(tenant_of(header), announced_bytes(header), what=what) as reservation:
            outcome, stored, created = await self._push(header, parts, reservation)
        _log.info(
            "model.pushed name=%s version=%d created=%s tenant=%s size_bytes=%d model_digest=%s",
            stored.model.name, stored.model.version, created, reservation.tenant, stored.model.size_bytes,
            stored.model.model_digest[:12],
        )  # fmt: skip
        return pb.PushModelResponse(model=stored.model, created=created, notes=outcome.notes)

    async def get(self, request: pb.GetModelRequest) -> pb.Model:
        """One version. Raises InvalidInputError, NotFoundError, UnavailableError."""
        check_name(request.name, "model name")
        if request.alias:
            check_name(request.alias, "alias")
        record = await self._index.model(request.name, check_version(request.version), request.alias)
        return record.model

    async def all_models(self, name: str) -> list[pb.Model]:
        """All versions of all models, or of one. Raises InvalidInputError, UnavailableError."""
        if name:
            check_name(name, "model name")
        return [record.model for record in await self._index.models(name)]

    async def set_alias(self, request: pb.SetAliasRequest) -> pb.Model:
        """Point an alias at a version. Raises InvalidInputError, NotFoundError, UnavailableError."""
        check_name(request.name, "model name")
        check_name(request.alias, "alias")
        if check_version(request.version) == 0:
            raise InvalidInputError(f"alias {request.alias} of {request.name} needs a version, 1 or larger")
        await self._index.set_alias(request.name, request.alias, request.version)
        return (await self._index.model(request.name, request.version)).model

    async def delete(self, request: pb.DeleteModelRequest) -> int:
        """Remove a version or all. Raises InvalidInputError, NotFoundError, UnavailableError."""
        check_name(request.name, "model name")
        count = await self._index.delete_model(request.name, check_version(request.version))
        _log.info("model.deleted name=%s version=%d versions=%d", request.name, request.version, count)
        return count

    async def _push(
        self, header: pb.PushHeader, parts: AsyncIterator[pb.PushModelRequest], reservation: Reservation
    ) -> tuple[IntakeOutcome, ModelRecord, bool]:
        async with scratch_directory(self._options.scratch, "push-") as directory:
            upload = await receive_upload(header, parts, directory, self._options.upload)
            outcome = await self._intake(directory, upload)
            kept = _kept_files(upload, outcome)
            await reservation.resize(sum(file.path.stat().st_size for file in kept))
            async with self._pins.held(f"push-{reservation.name}"):
                record = await self._record(upload, outcome, kept)
                stored, created = await self._index.add_model(record)
        return outcome, stored, created

    async def _intake(self, directory: Path, upload: Upload) -> IntakeOutcome:
        spec = IntakeSpec(
            model_file=upload.file_of(pb.FILE_ROLE_MODEL),
            external_files={
                file.name: file.path.name for file in upload.files if file.role == pb.FILE_ROLE_EXTERNAL_DATA
            },
            calibration_file=upload.file_of(pb.FILE_ROLE_CALIBRATION),
            validation_file=upload.file_of(pb.FILE_ROLE_VALIDATION),
            program_file=upload.file_of(pb.FILE_ROLE_PROGRAM),
            reference_file=upload.file_of(pb.FILE_ROLE_REFERENCE),
            label_array=upload.policy.label_array,
            task=upload.policy.task,
            output=upload.policy.output,
            limits=self._options.model,
            ranges=upload.ranges,
            target=self._options.target,
        )
        async with self._intakes:
            outcome = await self._run_intake(directory, spec)
        if isinstance(outcome, ChildFailure):
            _log.info("model.refused name=%s code=%s kind=%s", upload.model, outcome.code, outcome.kind.value)
            raise outcome.to_error()
        check_policy(read_policy(upload.policy), outcome.outputs)
        refuse_other_signature("input", upload.expected_inputs, outcome.inputs)
        refuse_other_signature("output", upload.expected_outputs, outcome.outputs)
        return outcome

    async def _record(self, upload: Upload, outcome: IntakeOutcome, kept: Sequence[_KeptFile]) -> ModelRecord:
        return ModelRecord(
            model=self._model(upload, outcome),
            files=[await self._stored(file.role, file.name, file.path) for file in kept],
            calibration_digest=outcome.calibration.digest,
            validation_digest=outcome.validation.digest,
            tenant=upload.tenant,
        )

    async def _stored(self, role: pb.FileRole, name: str, path: Path) -> StoredFile:
        digest, size_bytes, chunks = await store_file(self._store, path)
        listed = [chunk_message(chunk) for chunk in chunks]
        return StoredFile(role=role, name=name, digest=digest, size_bytes=size_bytes, chunks=listed)

    def _model(self, upload: Upload, outcome: IntakeOutcome) -> pb.Model:
        return pb.Model(
            name=upload.model,
            model_digest=outcome.model_digest,
            file_digest=outcome.file_digest,
            size_bytes=outcome.size_bytes,
            opset=outcome.opset,
            ir_version=outcome.ir_version,
            inputs=[tensor_spec_message(spec) for spec in outcome.inputs],
            outputs=[tensor_spec_message(spec) for spec in outcome.outputs],
            calibration_samples=outcome.calibration.count,
            validation_samples=outcome.validation.count,
            labelled=outcome.validation.labelled,
            policy=resolved_policy(upload.policy, labelled=outcome.validation.labelled),
            created_at_ms=self._clock.wall_ms(),
            parameter_bytes=outcome.parameter_bytes,
            operators=outcome.operators,
            support=[item.to_message() for item in outcome.support],
            ranges=[range_message(item) for item in outcome.ranges],
            notes=outcome.notes,
            program=outcome.release,
            export_check=export_check_message(outcome.export) if outcome.export else None,
        )


def _kept_files(upload: Upload, outcome: IntakeOutcome) -> tuple[_KeptFile, ...]:
    """What is kept of a push: the graph as intake wrote it with its weights, the program, and the samples."""
    files = [_KeptFile(pb.FILE_ROLE_MODEL, "model.onnx", outcome.model)]
    if outcome.weights is not None:
        files.append(_KeptFile(pb.FILE_ROLE_WEIGHTS, WEIGHTS_FILE, outcome.weights))
    if outcome.program is not None:
        files.append(_KeptFile(pb.FILE_ROLE_PROGRAM, PROGRAM_FILE, outcome.program))
    for role, name in ((pb.FILE_ROLE_CALIBRATION, "calibration.npz"), (pb.FILE_ROLE_VALIDATION, "validation.npz")):
        received = upload.one(role)
        if received is not None:
            files.append(_KeptFile(role, name, received.path))
    return tuple(files)


def resolved_policy(policy: pb.AccuracyPolicy, *, labelled: bool) -> pb.AccuracyPolicy:
    """The policy with its defaults written out, since it is part of artifact keys."""
    resolved = pb.AccuracyPolicy()
    resolved.CopyFrom(policy)
    resolved.task = policy.task or ("classification" if labelled else "generic")
    resolved.label_array = policy.label_array or DEFAULT_LABEL_ARRAY
    return resolved


def check_version(version: int) -> int:
    """Return the version unchanged.

    Raises:
        InvalidInputError: It is negative.
    """
    if version < 0:
        raise InvalidInputError(f"version {version} is not allowed: use 0 for the newest, or 1 and larger")
    return version
