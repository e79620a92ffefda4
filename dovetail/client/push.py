# SPDX-License-Identifier: Apache-2.0
"""Turns local files into the message stream of a push. Reading and hashing happen off the event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from dovetail.accuracy import DEFAULT_LABEL_ARRAY, AccuracyPolicy
from dovetail.digest import check_name, sha256_file
from dovetail.errors import InvalidInputError
from dovetail.gate import check_tolerances
from dovetail.pb.v1 import registry_pb2
from dovetail.pb.v1.registry_pb2_grpc import ModelRegistryStub
from dovetail.program.kinds import FileKind, kind_of, refuse_unopenable
from dovetail.ranges import DimRange
from dovetail.rpc.early_end import true_end
from dovetail.tensor import TensorSpec
from dovetail.wire import policy_message, range_message, tensor_spec_message

PIECE_BYTES = 1 << 20
"""Bytes in one message: the most that the service takes (PushModelRequest.data)."""

PUSH_TIMEOUT_S = 600.0
"""Limit of a push: intake of a large model is minutes of checking."""

UNNAMED_LABELS = AccuracyPolicy(label_array="")
"""The default policy of a push: labels are read if there are any under the default name."""

OnProgress = Callable[[int, int], None]
"""Called with bytes sent and bytes in all; from the event loop's thread."""


@dataclass(frozen=True, slots=True)
class PushOrder:
    """What to push.

    Attributes:
        name: Model name.
        model: The .onnx file; or an exported program alone, see `program`.
        external_data: Files that the model names as external data: by their path from the model's folder if they are
            in it, else by the last part.
        calibration: .npz with one array per input, or None.
        validation: .npz with one array per input and optionally labels, or None.
        policy: How accuracy is judged. A label array that is named must be there; with "" it is "label", if there is
            one.
        ranges: Sizes of free dimensions.
        expected_inputs: Inputs that the model must have; empty: any.
        expected_outputs: Outputs that the model must have; empty: any.
        program: The exported program (.pt2) beside the model, or None; equal to `model` where it comes alone.
        reference: .npz with outputs of the native module on examples, or None.
        tenant: Whose quota it counts for; "" is "default".
    """

    name: str
    model: Path
    external_data: tuple[Path, ...] = ()
    calibration: Path | None = None
    validation: Path | None = None
    policy: AccuracyPolicy = UNNAMED_LABELS
    ranges: tuple[DimRange, ...] = ()
    expected_inputs: tuple[TensorSpec, ...] = ()
    expected_outputs: tuple[TensorSpec, ...] = ()
    program: Path | None = None
    reference: Path | None = None
    tenant: str = ""

    def __post_init__(self) -> None:
        check_name(self.name, "model name")
        if self.tenant:
            check_name(self.tenant, "tenant")
        check_tolerances(self.policy)

    def files(self) -> tuple[tuple[int, Path], ...]:
        """Role and path of each file, in the order in which they are sent."""
        optional = (
            (registry_pb2.FILE_ROLE_CALIBRATION, self.calibration),
            (registry_pb2.FILE_ROLE_VALIDATION, self.validation),
            (registry_pb2.FILE_ROLE_PROGRAM, self.program),
            (registry_pb2.FILE_ROLE_REFERENCE, self.reference),
        )
        return (
            *(() if self.model == self.program else ((registry_pb2.FILE_ROLE_MODEL, self.model),)),
            *((registry_pb2.FILE_ROLE_EXTERNAL_DATA, path) for path in self.external_data),
            *((role, path) for role, path in optional if path is not None),
        )


async def send_push(
    registry: ModelRegistryStub, order: PushOrder, on_progress: OnProgress | None
) -> registry_pb2.PushModelResponse:
    """Push over a connection and return the service's answer; gRPC's own errors pass through.

    Raises:
        InvalidInputError: A file cannot be read.
    """
    broken: list[InvalidInputError] = []

    async def messages() -> AsyncIterator[registry_pb2.PushModelRequest]:
        try:
            async for message in push_messages(order, on_progress):
                yield message
        except InvalidInputError as exc:  # gRPC would hide it behind a bare CANCELLED
            broken.append(exc)
            raise

    call = registry.PushModel(messages(), timeout=PUSH_TIMEOUT_S)
    try:
        with true_end(call):
            reply: registry_pb2.PushModelResponse = await call
    except (grpc.RpcError, asyncio.CancelledError):
        if broken:
            raise broken[0] from None
        raise
    return reply


async def push_messages(
    order: PushOrder, on_progress: OnProgress | None = None
) -> AsyncIterator[registry_pb2.PushModelRequest]:
    """The header, then the files' bytes.

    Raises:
        InvalidInputError: A file cannot be read.
    """
    files = order.files()
    described = [await asyncio.to_thread(_described, role, path, order.model.parent) for role, path in files]
    yield registry_pb2.PushModelRequest(header=_header(order, described))
    total, sent = sum(item.size_bytes for item in described), 0
    for _, path in files:
        async for piece in _pieces(path):
            yield registry_pb2.PushModelRequest(data=piece)
            sent += len(piece)
            if on_progress is not None:
                on_progress(sent, total)


def _header(order: PushOrder, files: Sequence[registry_pb2.PushFile]) -> registry_pb2.PushHeader:
    return registry_pb2.PushHeader(
        name=order.name,
        files=files,
        policy=policy_message(order.policy),
        ranges=[range_message(item) for item in order.ranges],
        expected_inputs=[tensor_spec_message(spec) for spec in order.expected_inputs],
        expected_outputs=[tensor_spec_message(spec) for spec in order.expected_outputs],
        tenant=order.tenant,
    )


def _described(role: int, path: Path, folder: Path) -> registry_pb2.PushFile:
    external = role == registry_pb2.FILE_ROLE_EXTERNAL_DATA
    try:
        size, digest = path.stat().st_size, sha256_file(path)
    except OSError as exc:
        raise unreadable(path, exc) from exc
    name = _location(path, folder) if external else path.name
    return registry_pb2.PushFile(role=registry_pb2.FileRole.Name(role), name=name, size_bytes=size, sha256=digest)


def _location(path: Path, folder: Path) -> str:
    """How a model in this folder names the file."""
    try:
        return Path(os.path.abspath(path)).relative_to(os.path.abspath(folder)).as_posix()
    except ValueError:
        return path.name


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    try:
        with path.open("rb") as file:
            while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
                yield piece
    except OSError as exc:
        raise unreadable(path, exc) from exc


def policy_of(
    policy: AccuracyPolicy | None,
    *,
    task: str,
    label_array: str,
    output: str,
    max_metric_drop: float | None,
    tolerances: Mapping[str, float],
) -> AccuracyPolicy:
    """The policy given as a value or field by field; its label array is "" unless one is asked for by name.

    Raises:
        InvalidInputError: Given in both ways, or not possible.
    """
    fields = AccuracyPolicy(task, label_array, max_metric_drop, output, tolerances)
    if policy is None:
        return fields
    if fields != UNNAMED_LABELS:
        raise InvalidInputError("the accuracy policy is given twice: as a whole and field by field; choose one")
    return replace(policy, label_array="") if policy.label_array == DEFAULT_LABEL_ARRAY else policy


def is_program(model: Path) -> bool:
    """True for an exported program (.pt2), by what is in the file. Blocks for the directory of a zip.

    Raises:
        InvalidInputError: Another kind of PyTorch file, which nobody should open; the text says what to push instead.
    """
    try:
        kind = kind_of(model)
        refuse_unopenable(kind)
    except OSError as exc:
        raise unreadable(model, exc) from exc
    except InvalidInputError as exc:
        raise InvalidInputError(f"{model.name}: {exc}") from exc
    return kind is FileKind.PROGRAM


def unreadable(path: Path, exc: OSError) -> InvalidInputError:
    """The error for a local file that cannot be read."""
    return InvalidInputError(f"{path} cannot be read: {exc.strerror or exc}")


def check_files(paths: Sequence[Path | None]) -> None:
    """Make sure that files exist before a connection is made.

    Raises:
        InvalidInputError: One is not a file; the text names it.
    """
    for path in paths:
        if path is not None and not path.is_file():
            raise InvalidInputError(f"{path} is not a file")
