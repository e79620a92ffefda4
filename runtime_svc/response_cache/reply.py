# SPDX-License-Identifier: Apache-2.0
"""A reply as a cache keeps it: its own copies, which nobody can change, and their form as bytes for other processes.

The form is a header, JSON, that names the tensors, and their raw bytes one after the other. What comes from outside is
held against the model's signature before it is believed; whatever does not agree is no reply.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dovetail.errors import InvalidInputError
from dovetail.tensor import Array, TensorSpec, from_raw, to_raw

_MAGIC = b"dovetail-reply-1"
_HEAD = struct.Struct("<16sI")
_MAX_HEADER_BYTES = 1 << 20
_ELEMENT_BYTES = 48
"""Of an element of BYTES beside its text: a bytes object and the pointer to it."""


@dataclass(frozen=True, slots=True)
class KeptReply:
    """Outputs of a model, by name: arrays that are read-only and nobody else's.

    Attributes:
        outputs: The arrays.
        size_bytes: About how much memory they take.
    """

    outputs: Mapping[str, Array]
    size_bytes: int

    @staticmethod
    def copy_of(outputs: Mapping[str, Array]) -> KeptReply:
        """Copies of a reply's arrays, which may be views of something that is used again."""
        kept = {name: _own(array) for name, array in outputs.items()}
        return KeptReply(kept, sum(_size(array) for array in kept.values()))

    def to_bytes(self, specs: Sequence[TensorSpec]) -> bytes:
        """Their form for other processes; `specs` say the datatypes.

        Raises:
            InvalidInputError: There is an output that the signature does not have.
        """
        datatypes = {spec.name: spec.datatype for spec in specs}
        header, bodies = [], []
        for name, array in self.outputs.items():
            if name not in datatypes:
                raise InvalidInputError(f"output '{name}' is not in the model's signature")
            body = to_raw(array, datatypes[name])
            header.append([name, datatypes[name], list(array.shape), len(body)])
            bodies.append(body)
        text = json.dumps(header).encode()
        return b"".join((_HEAD.pack(_MAGIC, len(text)), text, *bodies))

    @staticmethod
    def from_bytes(data: bytes, specs: Sequence[TensorSpec]) -> KeptReply:
        """The reply in such bytes; its arrays are read-only views of them.

        Raises:
            InvalidInputError: They are no reply of a model with that signature.
        """
        try:
            magic, length = _HEAD.unpack_from(data)
            if magic != _MAGIC or length > _MAX_HEADER_BYTES or _HEAD.size + length > len(data):
                raise ValueError("head")
            outputs = _tensors(data, _HEAD.size + length, json.loads(data[_HEAD.size : _HEAD.size + length]), specs)
        except (ValueError, TypeError, RecursionError, struct.error) as exc:
            raise InvalidInputError("these bytes are no reply of this model") from exc
        return KeptReply(outputs, len(data))


def _tensors(data: bytes, offset: int, header: object, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    known = {spec.name: spec for spec in specs}
    outputs: dict[str, Array] = {}
    if not isinstance(header, list):
        raise TypeError("header")
    for name, datatype, dims, size in header:
        spec, shape = known.get(name), tuple(dims)
        if spec is None or spec.datatype != datatype or name in outputs:
            raise ValueError(f"output {name!r}")
        if len(shape) > 64 or not all(isinstance(dim, int) and dim >= 0 for dim in shape):
            raise ValueError("shape")
        if not isinstance(size, int) or not 0 <= size <= len(data) - offset or math.prod(shape) > len(data):
            raise ValueError("size")
        array = from_raw(memoryview(data)[offset : offset + size], datatype, shape, name=name)
        array.setflags(write=False)
        outputs[name] = array
        offset += size
    if offset != len(data):
        raise ValueError("bytes are left")
    return outputs


def _own(array: Array) -> Array:
    kept = np.array(array, copy=True, order="C")
    if kept.dtype == object:
        flat = kept.reshape(-1)
        for index, element in enumerate(flat):
            if not isinstance(element, bytes | str):
                flat[index] = bytes(element)
    kept.setflags(write=False)
    return kept


def _size(array: Array) -> int:
    if array.dtype == object:
        return sum(len(element) + _ELEMENT_BYTES for element in array.reshape(-1))
    return array.nbytes
