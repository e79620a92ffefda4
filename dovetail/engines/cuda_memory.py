# SPDX-License-Identifier: Apache-2.0
"""Memory of the GPU and page-locked ("pinned") memory of the host, kept in pools of bounded size.

Both kinds are dear to allocate: `cudaMalloc` and `cudaFree` wait for the whole device, page-locking goes through the
kernel page by page. So a buffer that is given back is kept for the next caller. Copies between host and device only
overlap with computing if the host's side is pinned.

Source: CUDA Runtime API, "Memory Management" (cudaHostAlloc; cudaMalloc aligns to 256 bytes at least, CUDA C++
Programming Guide, "Size and Alignment Requirement"); NvInferRuntime.h, setTensorAddress (alignment of 256 bytes).
"""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass

import numpy as np

from dovetail.engines.cuda_runtime import Cuda
from dovetail.errors import EngineError, OverLimitError
from dovetail.tensor import Array

ALIGNMENT = 256
"""Of every buffer, in bytes; TensorRT asks for it."""

_STEPS = 8
"""Sizes are rounded up to an eighth of their power of two, so that near sizes share buffers; costs 12.5 % at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Buffer:
    """Memory that a pool lent out.

    Attributes:
        address: Of its first byte; on the device, or on the host if pinned.
        size_bytes: What it holds, at least as much as was asked for.
        pinned: True for memory of the host.
    """

    address: int
    size_bytes: int
    pinned: bool

    def bytes_view(self, offset: int, size_bytes: int) -> Array:
        """A part of a pinned buffer as uint8 array of shape (size_bytes,), without a copy.

        The view is valid until the buffer is given back.

        Raises:
            EngineError: It is device memory, or the part is not within it.
        """
        if not self.pinned or offset < 0 or size_bytes < 0 or offset + size_bytes > self.size_bytes:
            raise EngineError(f"bytes {offset} to {offset + size_bytes} are not in a host buffer of {self.size_bytes}")
        if not size_bytes:
            return np.empty(0, dtype=np.uint8)
        content = (ctypes.c_uint8 * size_bytes).from_address(self.address + offset)
        return np.ctypeslib.as_array(content)


class BufferPool:
    """Buffers of one kind. Thread-safe.

    Args:
        cuda: The runtime; the calling thread's current device is where device memory comes from.
        pinned: True for page-locked host memory, False for device memory.
        limit_bytes: Most that the pool may hold, lent and idle together.
    """

    def __init__(self, cuda: Cuda, *, pinned: bool, limit_bytes: int) -> None:
        self._cuda = cuda
        self._pinned = pinned
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._idle: list[Buffer] = []
        self._held_bytes = 0
        self._open = True

    @property
    def held_bytes(self) -> int:
        """What the pool holds now, lent and idle together."""
        return self._held_bytes

    def take(self, size_bytes: int) -> Buffer:
        """A buffer of at least that size; give it back with `give`. Its content is whatever was there.

        Raises:
            OverLimitError: The pool's limit is reached, or the memory itself is at its end.
            EngineError: The runtime failed.
        """
        wanted = rounded_bytes(size_bytes)
        with self._lock:
            if not self._open:
                raise EngineError(f"the pool of {self._kind()} is closed")
            fitting = [buffer for buffer in self._idle if wanted <= buffer.size_bytes <= 2 * wanted]
            if fitting:
                found = min(fitting, key=lambda buffer: buffer.size_bytes)
                self._idle.remove(found)
                return found
            self._make_room(wanted)
            return self._allocate(wanted)

    def give(self, buffer: Buffer) -> None:
        """Take a buffer back; nothing may read or write it any more, the GPU included."""
        with self._lock:
            if self._open:
                self._idle.append(buffer)
            else:
                self._free(buffer)

    def close(self) -> None:
        """Free what is idle now, and each lent buffer when it comes back."""
        with self._lock:
            self._open = False
            while self._idle:
                self._free(self._idle.pop())

    def _make_room(self, wanted: int) -> None:
        while self._idle and self._held_bytes + wanted > self._limit_bytes:
            self._free(self._idle.pop(0))
        if self._held_bytes + wanted > self._limit_bytes:
            raise OverLimitError(
                f"{wanted} bytes of {self._kind()} are asked for, {self._held_bytes} of {self._limit_bytes} are in "
                "use: send smaller batches, or fewer at once"
            )

    def _allocate(self, size_bytes: int) -> Buffer:
        if self._pinned:
            address = self._cuda.call("cudaHostAlloc", size_bytes, self._cuda.library.cudaHostAllocPortable)
        else:
            address = self._cuda.call("cudaMalloc", size_bytes)
        buffer = Buffer(int(address), size_bytes, self._pinned)
        self._held_bytes += size_bytes
        if buffer.address % ALIGNMENT:
            self._free(buffer)
            raise EngineError(f"{self._kind()} came at an address that is not a multiple of {ALIGNMENT}")
        return buffer

    def _free(self, buffer: Buffer) -> None:
        self._held_bytes -= buffer.size_bytes
        self._cuda.release("cudaFreeHost" if self._pinned else "cudaFree", buffer.address)

    def _kind(self) -> str:
        return "pinned host memory" if self._pinned else "GPU memory"


def rounded_bytes(size_bytes: int) -> int:
    """The size that a pool allocates for a wish: a multiple of ALIGNMENT, and never 0.

    TensorRT wants an address even for an empty tensor. Source: NvInferRuntime.h, setTensorAddress.
    """
    step = max(ALIGNMENT, (1 << max(size_bytes, 1).bit_length()) // (2 * _STEPS))
    return max(-(-size_bytes // step) * step, ALIGNMENT)
