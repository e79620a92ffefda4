# SPDX-License-Identifier: Apache-2.0
"""Where the tensors of one message lie: a list of places, and the arrays over them.

Tensors lie one after the other in a body, each at a multiple of `ALIGNMENT`. Where the body itself is, in the message
or in memory that both processes share, is `frames`' business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dovetail.errors import InvalidInputError
from dovetail.tensor import NUMPY_DTYPES, Array, element_count, from_raw, to_raw

ALIGNMENT = 64  # a cache line, and enough for every vector instruction there is
MAX_TENSORS = 16384
"""Most tensors of a message; far above what signatures have, and a turn of a thousand requests has some thousands."""

Place = tuple[str, str, tuple[int, ...], int, int]
"""Name, datatype, shape, offset in the body, bytes."""


@dataclass(frozen=True, slots=True)
class Body:
    """Tensors ready to be sent.

    Attributes:
        places: Of each tensor.
        pieces: Its bytes, each a one-dimensional uint8 array or bytes.
        size_bytes: Of the whole, with the gaps.
    """

    places: list[Place]
    pieces: list[Array | bytes]
    size_bytes: int

    @property
    def is_steady(self) -> bool:
        """True if tensors of the same shapes always take the same places: texts do not."""
        return all(place[1] != "BYTES" for place in self.places)

    def buffers(self) -> list[Any]:
        """The pieces with the gaps between them, to be written one after the other."""
        parts: list[Any] = []
        end = 0
        for place, piece in zip(self.places, self.pieces, strict=True):
            offset, size = place[3], place[4]
            if offset > end:
                parts.append(bytes(offset - end))
            if size:
                parts.append(piece)
            end = offset + size
        return parts

    def detached(self) -> Body:
        """The same with bytes of its own, which nobody else can change or holds."""
        return Body(self.places, [bytes(piece) for piece in self.pieces], self.size_bytes)

    def write_to(self, target: Array) -> None:
        """Copy the pieces to their places in a uint8 array of at least `size_bytes`."""
        for place, piece in zip(self.places, self.pieces, strict=True):
            offset, size = place[3], place[4]
            target[offset : offset + size] = np.frombuffer(piece, dtype=np.uint8) if size else ()


def lay_out(tensors: Mapping[str, Array], datatypes: Mapping[str, str]) -> Body:
    """Places for tensors; those that are contiguous and of the right dtype are not copied."""
    places: list[Place] = []
    pieces: list[Array | bytes] = []
    end = 0
    for name, array in tensors.items():
        datatype = datatypes[name]
        if datatype == "BYTES":
            piece: Array | bytes = to_raw(array, datatype)
            size = len(piece)
        else:
            piece = np.ascontiguousarray(array, dtype=NUMPY_DTYPES[datatype]).reshape(-1).view(np.uint8)
            size = piece.nbytes
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        places.append((name, datatype, array.shape, offset, size))
        pieces.append(piece)
        end = offset + size
    return Body(places, pieces, end)


def read_places(entries: object, body_bytes: int) -> list[Place]:
    """Check places that another process sent.

    Raises:
        InvalidInputError: They are not places, or lie outside of a body of `body_bytes`.
    """
    if not isinstance(entries, list) or len(entries) > MAX_TENSORS:
        raise InvalidInputError("the list of tensors is not one")
    return [_read_place(entry, body_bytes) for entry in entries]


def arrays_over(places: Sequence[Place], body: Array) -> dict[str, Array]:
    """Arrays over a body, one for each place; all but BYTES are views of it.

    Raises:
        InvalidInputError: Shape and bytes of a tensor do not fit each other.
    """
    memory = body.data
    return {
        name: from_raw(memory[offset : offset + size], datatype, shape, name=name)
        if datatype == "BYTES"
        else np.ndarray(shape, NUMPY_DTYPES[datatype], buffer=memory[offset : offset + size])
        for name, datatype, shape, offset, size in places
    }


def _read_place(entry: object, body_bytes: int) -> Place:
    match entry:
        case [str(name), str(datatype), list(shape), int(offset), int(size)]:
            pass
        case _:
            raise InvalidInputError("a tensor is described in a way that nobody knows")
    if datatype not in NUMPY_DTYPES or not all(isinstance(dim, int) and dim >= 0 for dim in shape):
        raise InvalidInputError(f"tensor '{name[:80]}' has a datatype or shape that there is not")
    if offset < 0 or size < 0 or offset + size > body_bytes:
        raise InvalidInputError(f"tensor '{name[:80]}' does not lie within its message")
    if datatype != "BYTES" and element_count(shape) * NUMPY_DTYPES[datatype].itemsize != size:
        raise InvalidInputError(f"tensor '{name[:80]}' has {size} bytes, which do not fit its shape {shape}")
    return name, datatype, tuple(shape), offset, size
