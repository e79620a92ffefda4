# SPDX-License-Identifier: Apache-2.0
"""Tensors as the Open Inference Protocol sees them: datatype names, shapes, and raw little-endian bytes.

Arrays are numpy's. Two datatypes have no numpy twin and are represented so:

* BYTES: an object array whose elements are `bytes`;
* BF16: a uint16 array of the bit patterns (lossless; `bf16_to_float32` and `float32_to_bf16` convert).

Source: Open Inference Protocol v2, tensor data; Triton's binary tensor data extension (each BYTES element is a uint32
little-endian length and its bytes, no terminator, row-major).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dovetail.errors import InvalidInputError

Array = npt.NDArray[Any]

NUMPY_DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
"""Datatype name of the protocol -> dtype of the array that stands for it here."""

_MAX_DIM = (1 << 63) - 1  # the messages that carry shapes hold no more

_NAMES = {dtype: name for name, dtype in NUMPY_DTYPES.items() if name not in ("BF16",)}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, datatype and shape of a model input or output.

    Attributes:
        name: As in the graph.
        datatype: Protocol name, such as "FP32"; a key of NUMPY_DTYPES.
        shape: -1 stands for a dimension that may vary.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.datatype not in NUMPY_DTYPES:
            raise InvalidInputError(
                f"tensor {self.name!r} has datatype {self.datatype!r}; expected one of {', '.join(NUMPY_DTYPES)}"
            )
        if any(not -1 <= dim <= _MAX_DIM for dim in self.shape):
            raise InvalidInputError(
                f"tensor {self.name!r} has shape {str(list(self.shape))[:200]}; dimensions must be -1 or >= 0, and fit"
                " an int64"
            )

    def accepts(self, shape: Sequence[int]) -> bool:
        """True if an array of that shape fits: same rank, equal wherever this shape is fixed."""
        return len(shape) == len(self.shape) and all(
            want in (-1, got) for want, got in zip(self.shape, shape, strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> TensorSpec:
        """Read the JSON form."""
        return TensorSpec(str(document["name"]), document["datatype"], tuple(int(dim) for dim in document["shape"]))


def datatype_of(array: Array) -> str:
    """Protocol datatype of an array; uint16 is UINT16 (BF16 cannot be told from it: name it yourself).

    Raises:
        InvalidInputError: The protocol has no such type.
    """
    dtype = array.dtype.newbyteorder("<") if array.dtype.kind in "iuf" else array.dtype
    if dtype.kind in "SU":
        return "BYTES"
    try:
        return _NAMES[dtype]
    except KeyError:
        raise InvalidInputError(
            f"arrays of dtype {array.dtype} cannot be sent: the protocol has no such type"
        ) from None


def element_count(shape: Sequence[int]) -> int:
    """Number of elements; exact for any size."""
    return math.prod(shape)


def to_raw(array: Array, datatype: str) -> bytes:
    """Raw little-endian, row-major bytes of an array that stands for `datatype`."""
    if datatype == "BYTES":
        pieces: list[bytes] = []
        for element in array.ravel(order="C"):
            data = element.encode() if isinstance(element, str) else bytes(element)
            pieces += (struct.pack("<I", len(data)), data)
        return b"".join(pieces)
    return np.ascontiguousarray(array, dtype=NUMPY_DTYPES[datatype]).tobytes()


def from_raw(raw: bytes | memoryview, datatype: str, shape: Sequence[int], *, name: str = "tensor") -> Array:
    """Array over raw bytes; for every type but BYTES it is a read-only view, not a copy.

    Raises:
        InvalidInputError: The byte count does not fit shape and datatype, or a BYTES element is incomplete.
    """
    if datatype not in NUMPY_DTYPES:
        raise InvalidInputError(f"inference input '{name}' has unknown data-type '{datatype}'")
    count = element_count(shape)
    if datatype == "BYTES":
        return _bytes_from_raw(memoryview(raw), count, name).reshape(tuple(shape))
    dtype = NUMPY_DTYPES[datatype]
    if count * dtype.itemsize != len(raw):
        raise InvalidInputError(
            f"input byte size mismatch for input '{name}'. Expected {count * dtype.itemsize}, got {len(raw)}"
        )
    return np.frombuffer(raw, dtype=dtype).reshape(tuple(shape))


def _bytes_from_raw(raw: memoryview, count: int, name: str) -> Array:
    elements: list[bytes] = []
    offset = 0
    while offset < len(raw):
        if offset + 4 > len(raw):
            raise InvalidInputError(f"incomplete string length indicator for inference input '{name}'")
        (length,) = struct.unpack_from("<I", raw, offset)
        offset += 4
        if offset + length > len(raw):
            raise InvalidInputError(
                f"incomplete string data for inference input '{name}', expecting string of length {length}"
                f" but only {len(raw) - offset} bytes available"
            )
        elements.append(bytes(raw[offset : offset + length]))
        offset += length
    if len(elements) != count:
        raise InvalidInputError(f"expected {count} string elements for inference input '{name}', got {len(elements)}")
    array = np.empty(count, dtype=object)
    array[:] = elements
    return array


def bf16_to_float32(bits: Array) -> npt.NDArray[np.float32]:
    """Values of BF16 bit patterns; exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float32_to_bf16(values: Array) -> npt.NDArray[np.uint16]:
    """Bit patterns of the nearest BF16 values, ties to even; NaN stays NaN."""
    raw = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (raw + 0x7FFF + ((raw >> 16) & 1)) >> 16
    quiet_nan = (raw >> 16) | 0x0040
    return np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint16)
