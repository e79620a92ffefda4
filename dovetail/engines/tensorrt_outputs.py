# SPDX-License-Identifier: Apache-2.0
"""Memory for outputs whose size only the data decides (non-zero indices, detections after suppression).

TensorRT asks for it while it enqueues, and says the shape then. The memory of a run stays until the run is over.

Source: TensorRT Python API 10.16 and 11.4, IOutputAllocator (`reallocate_output_async` since 10.0).
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

from dovetail.engines.cuda_memory import Buffer, BufferPool
from dovetail.engines.tensorrt_io import Shape, shape_of
from dovetail.errors import DovetailError

_log = logging.getLogger(__name__)


class OutputAllocator(Protocol):
    """What this file makes: a `tensorrt.IOutputAllocator` for one output."""

    def address(self) -> int:
        """Where the output of the last run begins; 0 if there is none."""
        ...

    def shape(self) -> Shape | None:
        """Its shape; None if TensorRT did not say."""
        ...

    def failure(self) -> DovetailError | None:
        """Why memory was refused in the last run."""
        ...

    def begin(self) -> None:
        """A run begins: forget the last one's shape and failure, keep its memory."""
        ...

    def close(self) -> None:
        """Give the memory back; the GPU does not use it any more."""
        ...


def output_allocator(trt: Any, pool: BufferPool) -> OutputAllocator:
    """An allocator over device memory of that pool. Used by one thread at a time."""

    class PooledOutput(trt.IOutputAllocator):  # type: ignore[misc]
        """TensorRT calls the first three methods; nothing may be raised into it."""

        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)  # pybind11 wants the base called by name
            self._memory: Buffer | None = None
            self._outgrown: list[Buffer] = []
            self._shape: Shape | None = None
            self._failure: DovetailError | None = None

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            if self._memory is not None and size <= self._memory.size_bytes:
                return self._memory.address
            try:
                wanted = pool.take(int(size))
            except DovetailError as error:
                _log.warning("tensorrt.output_refused output=%s size_bytes=%d why=%r", tensor_name, size, str(error))
                self._failure = error
                return 0
            if self._memory is not None:
                self._outgrown.append(self._memory)
            self._memory = wanted
            return wanted.address

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self._shape = shape_of(shape)

        def address(self) -> int:
            return self._memory.address if self._memory is not None else 0

        def shape(self) -> Shape | None:
            return self._shape

        def failure(self) -> DovetailError | None:
            return self._failure

        def begin(self) -> None:
            self._shape = self._failure = None
            while self._outgrown:
                pool.give(self._outgrown.pop())

        def close(self) -> None:
            self.begin()
            if self._memory is not None:
                pool.give(self._memory)
                self._memory = None

    return PooledOutput()
