# SPDX-License-Identifier: Apache-2.0
"""Turns local files into the message stream of a push. Reading and hashing happen off the event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from dovetail.digest import check_name, sha256_file
from dovetail.errors import InvalidInputError
from dovetail.pb.v1 import registry_pb2
from dovetail.pb.v1.registry_pb2_grpc import ModelRegistryStub

PIECE_BYTES = 1 << 20
"""Bytes in one message: the most that the service takes (PushModelRequest.data)."""

PUSH_TIMEOUT_S = 600.0
"""Limit of a push: intake of a large model is minutes of checking."""

OnProgress = Callable[[int, int], None]
"""Called with bytes sent and bytes in all; from the event loop's thread."""


@dataclass(frozen=True, slots=True)
class PushOrder:
    """What to push.

    Attributes:
        name: Model name.
        model: The .onnx file.
        external_data: Files that the model names as external data: by their path from the model's folder if they are
            in it, else by the last part.
        calibration: .npz with one array per input, or None.
        validation: .npz with one array per input and optionally labels, or None.
        task: "classification", "generic" or "": decided by the labels.
        label_array: Name of the label array in the validation file.
        max_metric_drop: Allowed loss of the metric as a fraction; None: the precision's default.
    """

    name: str
    model: Path
    external_data: tuple[Path, ...] = ()
    calibration: Path | None = None
    validation: Path | None = None
    task: str = ""
    label_array: str = ""
    max_metric_drop: float | None = None

    def __post_init__(self) -> None:
        check_name(self.name, "model name")

    def files(self) -> tuple[tuple[int, Path], ...]:
        """Role and path of each file, in the order in which they are sent."""
        optional = (
            (registry_pb2.FILE_ROLE_CALIBRATION, self.calibration),
            (registry_pb2.FILE_ROLE_VALIDATION, self.validation),
        )
        return (
            (registry_pb2.FILE_ROLE_MODEL, self.model),
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

    try:
        reply: registry_pb2.PushModelResponse = await registry.PushModel(messages(), timeout=PUSH_TIMEOUT_S)
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
    policy = registry_pb2.AccuracyPolicy(task=order.task, label_array=order.label_array)
    if order.max_metric_drop is not None:
        policy.max_metric_drop = order.max_metric_drop
    yield registry_pb2.PushModelRequest(header=registry_pb2.PushHeader(name=order.name, files=described, policy=policy))
    total, sent = sum(item.size_bytes for item in described), 0
    for _, path in files:
        async for piece in _pieces(path):
            yield registry_pb2.PushModelRequest(data=piece)
            sent += len(piece)
            if on_progress is not None:
                on_progress(sent, total)


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
