# SPDX-License-Identifier: Apache-2.0
"""Keeps the weights of a model that does not fit into one protobuf file in one file beside it.

Protobuf messages end at 2 GiB. A larger model becomes `model.onnx`, which holds the graph and the small tensors, and
`model.onnx.data` with the large weights of the main graph in name order, each at a multiple of a page. Weights are
copied from where they were pushed to there piece by piece and hashed on the way, so that no more than a piece of them
is in memory. Small tensors stay inside, because shape inference reads shapes and axes from them.

Source: ONNX, "External data": offsets are multiples of the page size (4 KiB), so that a loader can map them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import onnx

from compiler_svc.intake import graph
from compiler_svc.intake.external_data import open_range, stored_bytes
from compiler_svc.intake.limits import WEIGHTS_FILE, ModelLimits
from compiler_svc.intake.model_digest import tensor_head
from dovetail.errors import InvalidInputError, OverLimitError

PAGE_BYTES = 4096
_PIECE_BYTES = 8 << 20
_EXTERNAL = onnx.TensorProto.EXTERNAL


@dataclass(frozen=True, slots=True)
class LargeWeights:
    """Weights in a file of their own.

    Attributes:
        path: The file.
        digests: Name of a weight -> what `model_digest.tensor_digest` would say of it.
        parameter_bytes: Bytes of the weights, gaps left out.
    """

    path: Path
    digests: Mapping[str, str]
    parameter_bytes: int


def needs_own_file(model: Any, limits: ModelLimits) -> bool:
    """True if the model would be too large with all its tensors inside."""
    return sum(_size(tensor) for tensor in graph.tensors(model)) > limits.inline_bytes


def move_weights(model: Any, files: Mapping[str, Path], limits: ModelLimits, folder: Path) -> LargeWeights:
    """Write the large weights of the main graph to a file and take their data out of the model.

    The weights are then marked as held inside, without data, until `refer` tells where they are.

    Args:
        model: Parsed model whose sizes were checked; changed in place.
        files: Location as the model spells it -> file that was pushed under that name.
        limits: `spill_bytes` says which weights are large, `external_bytes` how much the file may hold.
        folder: Directory of our own.

    Raises:
        InvalidInputError: As `external_data.pack_external_data` says.
        OverLimitError: The weights are larger than allowed.
    """
    large = sorted(
        (tensor for tensor in model.graph.initializer if _size(tensor) >= limits.spill_bytes),
        key=lambda tensor: tensor.name,
    )
    if len({tensor.name for tensor in model.graph.initializer}) != len(model.graph.initializer):
        raise InvalidInputError("two weights of the model have the same name; export it again")
    total = sum(_size(tensor) for tensor in large)
    if total > limits.external_bytes:
        raise OverLimitError(
            f"the model's weights take {total} bytes, the limit of this service is {limits.external_bytes}"
        )
    digests: dict[str, str] = {}
    path = folder / WEIGHTS_FILE
    with path.open("xb") as file:
        for tensor in large:
            file.seek(-(-file.tell() // PAGE_BYTES) * PAGE_BYTES)
            digests[tensor.name] = _move(tensor, files, file)
    return LargeWeights(path, digests, total)


def refer(model: Any, weights: LargeWeights) -> None:
    """Tell the model where its large weights are; the layout follows from their names and sizes."""
    offset = 0
    for tensor in sorted(model.graph.initializer, key=lambda tensor: tensor.name):
        if tensor.name not in weights.digests:
            continue
        offset = -(-offset // PAGE_BYTES) * PAGE_BYTES
        size = stored_bytes(tensor)
        tensor.data_location = _EXTERNAL
        for key, value in (("location", WEIGHTS_FILE), ("offset", str(offset)), ("length", str(size))):
            tensor.external_data.add(key=key, value=value)
        offset += size


def _size(tensor: Any) -> int:
    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(len(text) for text in tensor.string_data)
    return stored_bytes(tensor)


def _move(tensor: Any, files: Mapping[str, Path], file: BinaryIO) -> str:
    hasher = hashlib.sha256(tensor_head(tensor))
    for piece in _pieces(tensor, files):
        hasher.update(piece)
        file.write(piece)
    for name in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "external_data"):
        tensor.ClearField(name)
    tensor.ClearField("data_location")
    return hasher.hexdigest()


def _pieces(tensor: Any, files: Mapping[str, Path]) -> Iterator[bytes | memoryview]:
    if tensor.data_location == _EXTERNAL:
        left = stored_bytes(tensor)
        with open_range(tensor, files) as source:
            while left:
                piece = source.read(min(left, _PIECE_BYTES))
                if not piece:
                    raise InvalidInputError(f"external data of tensor {tensor.name!r} ended early")
                left -= len(piece)
                yield piece
        return
    data = tensor.raw_data if tensor.HasField("raw_data") else _typed(tensor)
    if len(data) != stored_bytes(tensor):
        raise InvalidInputError(
            f"tensor {tensor.name!r} holds {len(data)} bytes, its shape {list(tensor.dims)} and type need"
            f" {stored_bytes(tensor)}; the file is damaged"
        )
    for start in range(0, len(data), _PIECE_BYTES):
        yield memoryview(data)[start : start + _PIECE_BYTES]


def _typed(tensor: Any) -> bytes:
    try:
        return bytes(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)).raw_data)
    except Exception as exc:  # numpy and ml_dtypes raise what they like for data that does not fit
        raise InvalidInputError(
            f"tensor {tensor.name!r} holds data that does not fit its shape: {' '.join(str(exc).split())[:200]}"
        ) from exc
