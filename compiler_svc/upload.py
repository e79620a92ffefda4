# SPDX-License-Identifier: Apache-2.0
"""Takes a pushed stream apart into files in a private directory, refusing anything that is not as announced.

Names of the client are never used on disk. Sizes and digests are checked while the bytes arrive, so that a wrong or
endless stream is refused early. What the files contain is intake's business.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from compiler_svc.collection.roots import DEFAULT_TENANT
from compiler_svc.scratch import SETTING, disk_call
from dovetail.digest import check_digest, check_name
from dovetail.errors import InvalidInputError, OverLimitError
from dovetail.gate import check_tolerances
from dovetail.pb.v1 import registry_pb2 as pb
from dovetail.ranges import DimRange
from dovetail.store.durable import disk_errors
from dovetail.tensor import TensorSpec
from dovetail.wire import read_policy, read_range, read_tensor_spec

_ACTION = "keep the upload"
_WORDS = {
    pb.FILE_ROLE_MODEL: "model",
    pb.FILE_ROLE_EXTERNAL_DATA: "external data",
    pb.FILE_ROLE_CALIBRATION: "calibration",
    pb.FILE_ROLE_VALIDATION: "validation",
    pb.FILE_ROLE_PROGRAM: "program",
    pb.FILE_ROLE_REFERENCE: "reference",
}


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """What a push may bring.

    Attributes:
        total_bytes: All files together.
        files: Number of files.
        message_bytes: One data message.
        name_chars: Length of a file's, input's or label array's name.
        ranges: Number of declared ranges.
    """

    total_bytes: int = 6 << 30
    files: int = 1024
    message_bytes: int = 1 << 20
    name_chars: int = 512
    ranges: int = 1024


@dataclass(frozen=True, slots=True)
class ReceivedFile:
    """A file that arrived whole.

    Attributes:
        role: What it is.
        name: As the client calls it; never a name on disk.
        path: Where it is.
        digest: sha256, equal to the announced one.
        size_bytes: Its size, equal to the announced one.
    """

    role: pb.FileRole
    name: str
    path: Path
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Upload:
    """A push that arrived whole.

    Attributes:
        model: Name to register it under.
        policy: As sent.
        files: In the header's order.
        ranges: Declared sizes of free dimensions; whether they fit the model is intake's business.
        expected_inputs: Signature that the client takes for granted; empty: any.
        expected_outputs: The same.
        tenant: Whose quota it counts for.
    """

    model: str
    policy: pb.AccuracyPolicy
    files: tuple[ReceivedFile, ...]
    ranges: tuple[DimRange, ...] = ()
    expected_inputs: tuple[TensorSpec, ...] = ()
    expected_outputs: tuple[TensorSpec, ...] = ()
    tenant: str = DEFAULT_TENANT

    def one(self, role: pb.FileRole) -> ReceivedFile | None:
        """The file of a role of which there is at most one."""
        return next((file for file in self.files if file.role == role), None)

    def file_of(self, role: pb.FileRole) -> str:
        """Its name on disk; "" if there is none."""
        received = self.one(role)
        return received.path.name if received else ""


async def receive_header(parts: AsyncIterator[pb.PushModelRequest], limits: UploadLimits) -> pb.PushHeader:
    """Read the first message, which says what will come.

    Raises:
        InvalidInputError: Not as the protocol says.
        OverLimitError: More is announced than is accepted.
    """
    first = await anext(aiter(parts), None)
    if first is None or first.WhichOneof("part") != "header":
        raise InvalidInputError("a push must begin with its header: model name and the list of files")
    check_header(first.header, limits)
    return first.header


async def receive_upload(
    header: pb.PushHeader, parts: AsyncIterator[pb.PushModelRequest], directory: Path, limits: UploadLimits
) -> Upload:
    """Read the stream behind its header to its end.

    Args:
        header: As `receive_header` returned it.
        parts: The client's further messages.
        directory: Private and empty; the caller removes it.
        limits: What is accepted.

    Raises:
        InvalidInputError: Not as the protocol says, or a size or digest does not match.
        OverLimitError: Over a limit, or the disk is full.
    """
    files: list[ReceivedFile] = []
    source = _Data(parts, limits)
    for index, announced in enumerate(header.files):
        files.append(await _receive_file(source, announced, directory / f"upload-{index:04d}"))
    await source.expect_end()
    return Upload(
        header.name,
        header.policy,
        tuple(files),
        ranges=tuple(read_range(item) for item in header.ranges),
        expected_inputs=tuple(read_tensor_spec(item) for item in header.expected_inputs),
        expected_outputs=tuple(read_tensor_spec(item) for item in header.expected_outputs),
        tenant=tenant_of(header),
    )


def tenant_of(header: pb.PushHeader) -> str:
    """Whose quota a push counts for."""
    return header.tenant or DEFAULT_TENANT


def announced_bytes(header: pb.PushHeader) -> int:
    """Size of all announced files."""
    return sum(file.size_bytes for file in header.files)


def check_header(header: pb.PushHeader, limits: UploadLimits) -> None:
    """Refuse what can be refused before any byte of a file arrives.

    Raises:
        InvalidInputError: Bad name, role, digest, policy or range, or a missing or repeated file.
        OverLimitError: Too many files, bytes or ranges.
    """
    check_name(header.name, "model name")
    check_name(tenant_of(header), "tenant")
    if len(header.files) > limits.files:
        raise OverLimitError(f"push of {header.name}: {len(header.files)} files, at most {limits.files} are accepted")
    total = announced_bytes(header)
    if total > limits.total_bytes:
        raise OverLimitError(f"push of {header.name}: {total} bytes, at most {limits.total_bytes} are accepted")
    for file in header.files:
        _check_file(file, limits)
    _check_counts(header.files)
    _check_policy(header.policy, limits)
    _check_ranges(header, limits)


def _check_file(file: pb.PushFile, limits: UploadLimits) -> None:
    if file.role not in _WORDS:
        raise InvalidInputError(f"file {file.name[:80]!r} has role {file.role}, which this version does not know")
    if len(file.name) > limits.name_chars:
        raise InvalidInputError(
            f"a file name has {len(file.name)} characters, at most {limits.name_chars} are accepted"
        )
    check_digest(file.sha256, f"digest of {_WORDS[file.role]} file {file.name!r}")
    if file.role != pb.FILE_ROLE_EXTERNAL_DATA:
        if file.size_bytes == 0:
            raise InvalidInputError(f"{_WORDS[file.role]} file {file.name!r} is empty")
        return
    where = PurePosixPath(file.name)
    if not file.name or where.is_absolute() or ".." in where.parts or "\\" in file.name or "\0" in file.name:
        raise InvalidInputError(
            f"external data {file.name!r} leaves the model's folder; use a relative path without '..'"
        )


def _check_counts(files: Sequence[pb.PushFile]) -> None:
    counts = {role: sum(1 for file in files if file.role == role) for role in _WORDS}
    models, programs = counts[pb.FILE_ROLE_MODEL], counts[pb.FILE_ROLE_PROGRAM]
    if models != 1 and not (models == 0 and programs == 1):
        raise InvalidInputError(f"a push has exactly one model file (or one program instead), this one has {models}")
    if models == 0 and counts[pb.FILE_ROLE_REFERENCE]:
        raise InvalidInputError("a reference is pushed with the graph that it judges; this push has no model file")
    for role, word in _WORDS.items():
        count = counts[role]
        if role != pb.FILE_ROLE_EXTERNAL_DATA and count > 1:
            raise InvalidInputError(f"a push has at most one {word} file, this one has {count}")
    names = [file.name for file in files if file.role == pb.FILE_ROLE_EXTERNAL_DATA]
    if len(set(names)) != len(names):
        raise InvalidInputError("two external data files have the same name")


def _check_policy(policy: pb.AccuracyPolicy, limits: UploadLimits) -> None:
    check_tolerances(read_policy(policy))
    if len(policy.label_array) > limits.name_chars:
        raise InvalidInputError("accuracy policy: the name of the label array is too long")


def _check_ranges(header: pb.PushHeader, limits: UploadLimits) -> None:
    if len(header.ranges) > limits.ranges:
        raise OverLimitError(
            f"push of {header.name}: {len(header.ranges)} declared ranges, at most {limits.ranges} are accepted"
        )
    for item in header.ranges:
        if len(item.input) > limits.name_chars:
            raise InvalidInputError("a declared range: the name of the input is too long")
        read_range(item)


class _Data:
    """The data messages of a stream."""

    def __init__(self, parts: AsyncIterator[pb.PushModelRequest], limits: UploadLimits) -> None:
        self._parts = parts
        self._limits = limits

    async def next(self) -> bytes | None:
        """The next message's bytes; None at the end."""
        async for part in self._parts:
            if part.WhichOneof("part") != "data":
                raise InvalidInputError("a push has one header, and only data after it")
            if len(part.data) > self._limits.message_bytes:
                raise InvalidInputError(
                    f"a data message has {len(part.data)} bytes, at most {self._limits.message_bytes} are accepted"
                )
            if part.data:
                return part.data
        return None

    async def expect_end(self) -> None:
        if await self.next() is not None:
            raise InvalidInputError("data goes on after the last announced file")


def _create(path: Path) -> BinaryIO:
    """Open a new file; not in a thread, because a cancelled wait for the thread would leave it open."""
    with disk_errors(_ACTION, setting=SETTING):
        return path.open("xb")


async def _receive_file(source: _Data, announced: pb.PushFile, path: Path) -> ReceivedFile:
    label = f"{_WORDS[announced.role]} file {announced.name!r}"
    hasher = hashlib.sha256()
    received = 0
    file = _create(path)

    def append(data: bytes) -> None:
        hasher.update(data)
        file.write(data)

    try:
        while received < announced.size_bytes:
            data = await source.next()
            if data is None:
                raise InvalidInputError(f"{label} ended after {received} of {announced.size_bytes} announced bytes")
            received += len(data)
            if received > announced.size_bytes:
                raise InvalidInputError(f"{label} is longer than its {announced.size_bytes} announced bytes")
            await disk_call(append, data, action=_ACTION)
        await disk_call(file.flush, action=_ACTION)
    finally:
        with suppress(OSError):  # what is buffered after a failed write fails here again
            file.close()
    if hasher.hexdigest() != announced.sha256:
        raise InvalidInputError(
            f"{label} arrived with digest {hasher.hexdigest()}, announced was {announced.sha256}; send it again"
        )
    return ReceivedFile(announced.role, announced.name, path, announced.sha256, received)
