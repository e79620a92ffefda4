# SPDX-License-Identifier: Apache-2.0
"""Memory that batches are gathered into, used again only when it is certain that nobody can see it any more.

An engine may keep its inputs, and may return views of them as outputs (an identity does). So a buffer is handed out
again only if nothing but the pool refers to it: every numpy view, memoryview, DLPack capsule and library tensor that
was made from an array holds a reference to it. For outputs over bare addresses, which hold none, whoever gathers asks
whether they overlap; then the pool forgets the buffer. What cannot be proven costs an allocation, never an answer.

A pool belongs to one thread.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Collection
from typing import Any

import numpy as np

from dovetail.tensor import Array

LEAST_BYTES = 16 << 10
"""Smaller arrays come from the interpreter's own heap faster than from here."""

POOL_BYTES = 64 << 20
"""Most bytes that a pool keeps."""

BUFFERS_EACH = 2
"""Buffers of one shape: one that the engine may still hold from its last run, and one for this."""


class _Buffer:
    __slots__ = ("array",)

    def __init__(self, array: Array) -> None:
        self.array = array

    def references(self) -> int:
        return sys.getrefcount(self.array)


_UNSEEN = _Buffer(np.empty(0)).references()
"""References to an array that nobody but its buffer knows, as this interpreter counts them."""


class BufferPool:
    """Buffers by shape, the least recently used ones forgotten first.

    Args:
        max_bytes: Most bytes that are kept.
    """

    def __init__(self, max_bytes: int = POOL_BYTES) -> None:
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._buffers: OrderedDict[tuple[str, np.dtype[Any], tuple[int, ...]], list[_Buffer]] = OrderedDict()
        self._lent: list[tuple[list[_Buffer], _Buffer]] = []

    @property
    def size_bytes(self) -> int:
        """Bytes that are kept."""
        return self._size_bytes

    def take(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], rows: int) -> Array:
        """An array of so many rows of that shape, with any content.

        Args:
            name: Of the input, so that inputs of one shape do not share buffers.
            dtype: Of the elements.
            shape: Without axis 0.
            rows: Length of axis 0.
        """
        capacity = 1 << (rows - 1).bit_length() if rows else 0
        size_bytes = dtype.itemsize * capacity * _elements(shape)
        if dtype.hasobject or not LEAST_BYTES <= size_bytes <= self._max_bytes // 2:
            return np.empty((rows, *shape), dtype)
        key = (name, dtype, (capacity, *shape))
        known = self._buffers.setdefault(key, [])
        self._buffers.move_to_end(key)
        buffer = next((each for each in known if each.references() <= _UNSEEN), None)
        if buffer is None:
            buffer = _Buffer(np.empty((capacity, *shape), dtype))
            if len(known) >= BUFFERS_EACH:
                self._forget(known, known[0])
            known.append(buffer)
            self._size_bytes += buffer.array.nbytes
            self._trim()
        self._lent.append((known, buffer))
        return buffer.array[:rows]

    def settle(self, outputs: Collection[Array]) -> None:
        """Say what came of the arrays that were taken since the last call; those that overlap are never used again."""
        if not self._lent:
            return
        for known, buffer in self._lent:
            if any(np.may_share_memory(output, buffer.array) for output in outputs):
                self._forget(known, buffer)
        self._lent.clear()

    def _forget(self, known: list[_Buffer], buffer: _Buffer) -> None:
        if buffer in known:
            known.remove(buffer)
            self._size_bytes -= buffer.array.nbytes

    def _trim(self) -> None:
        while self._size_bytes > self._max_bytes and len(self._buffers) > 1:
            _, buffers = self._buffers.popitem(last=False)
            self._size_bytes -= sum(buffer.array.nbytes for buffer in buffers)
            buffers.clear()


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for dim in shape:
        count *= dim
    return count
