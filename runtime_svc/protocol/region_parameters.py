# SPDX-License-Identifier: Apache-2.0
"""The parameters that say that a tensor lies in a shared memory region instead of the message.

Source: Triton Inference Server, shared memory extension; checks and texts as in its gRPC front end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from dovetail.errors import InvalidInputError, OverLimitError
from dovetail.pb import oip
from runtime_svc.shared_memory import RegionWindow, SharedMemoryRegions

REGION = "shared_memory_region"
OFFSET = "shared_memory_offset"
BYTE_SIZE = "shared_memory_byte_size"

MAX_REQUEST_BYTES = 4 << 30
"""Most bytes that the inputs of one request may have in regions: they are copied, so this bounds what it can take."""

Parameters = Mapping[str, oip.InferParameter]


class Tensor(Protocol):
    """What inputs and requested outputs have in common."""

    @property
    def name(self) -> str:
        """Of the tensor."""
        ...

    @property
    def parameters(self) -> Parameters:
        """Of the tensor."""
        ...


def in_region(parameters: Parameters) -> bool:
    """True if the tensor is said to lie in a region."""
    return REGION in parameters


def read_window(tensor: Tensor, regions: SharedMemoryRegions) -> RegionWindow | None:
    """Where in which region a tensor lies; None if it does not.

    Raises:
        InvalidInputError: Parameters are missing, of a wrong type, or name a place outside the region.
        NotFoundError: There is no such region.
    """
    parameters = tensor.parameters
    if not in_region(parameters):
        for name in (OFFSET, BYTE_SIZE):
            if name in parameters:
                raise InvalidInputError(
                    f"'{name}' can not be specified without '{REGION}' parameter for tensor '{tensor.name}'"
                )
        return None
    _check_type(tensor, REGION, "string_param")
    if OFFSET in parameters:
        _check_type(tensor, OFFSET, "int64_param")
    if BYTE_SIZE not in parameters:
        raise InvalidInputError(
            f"'{BYTE_SIZE}' must be specified along with '{REGION}' parameter for tensor '{tensor.name}'"
        )
    _check_type(tensor, BYTE_SIZE, "int64_param")
    offset = parameters[OFFSET].int64_param if OFFSET in parameters else 0
    return regions.window(parameters[REGION].string_param, offset, parameters[BYTE_SIZE].int64_param)


def bytes_in_regions(tensors: Iterable[Tensor]) -> int:
    """Bytes that tensors are said to have in regions; what is not a size counts as none.

    Raises:
        OverLimitError: They are more than a request may have.
    """
    sizes = [tensor.parameters[BYTE_SIZE].int64_param for tensor in tensors if BYTE_SIZE in tensor.parameters]
    total = sum(max(size, 0) for size in sizes)
    if total > MAX_REQUEST_BYTES:
        raise OverLimitError(f"the request has {total} bytes in shared memory, at most {MAX_REQUEST_BYTES} are allowed")
    return total


def _check_type(tensor: Tensor, name: str, expected: str) -> None:
    if tensor.parameters[name].WhichOneof("parameter_choice") != expected:
        raise InvalidInputError(
            f"invalid value type for '{name}' parameter for tensor '{tensor.name}', expected {expected}."
        )
