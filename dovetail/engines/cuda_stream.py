# SPDX-License-Identifier: Apache-2.0
"""Streams of a GPU: queues whose entries run in order, and beside those of other streams.

What is enqueued on one stream (copy in, compute, copy out) needs no waiting in between; what is on two streams
overlaps: the copy engines of the GPU work while its cores compute for another request.

Waiting sleeps instead of spinning: a node shares its cores with request handling, and a spinning thread would take a
whole one for each stream. It costs tens of microseconds to wake up (a choice, not measured on a GPU).

Source: CUDA Runtime API, "Stream Management" and "Event Management" (cudaEventBlockingSync).
"""

from __future__ import annotations

from typing import Any

from dovetail.engines.cuda_memory import Buffer
from dovetail.engines.cuda_runtime import Cuda


class Stream:
    """A stream with the event that says when it is empty. Used by one thread at a time.

    Attributes:
        handle: Its address, as TensorRT wants it.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        library = cuda.library
        self.native: Any = cuda.call("cudaStreamCreateWithFlags", library.cudaStreamNonBlocking)
        try:
            flags = library.cudaEventBlockingSync | library.cudaEventDisableTiming
            self._event: Any = cuda.call("cudaEventCreateWithFlags", flags)
        except BaseException:
            cuda.release("cudaStreamDestroy", self.native)
            raise
        self.handle = cuda.handle(self.native)

    def copy_in(self, target: Buffer, source: Buffer, size_bytes: int) -> None:
        """Enqueue a copy from a pinned buffer to the device."""
        self._copy(target.address, source.address, size_bytes, "cudaMemcpyHostToDevice")

    def copy_out(self, target: Buffer, offset: int, source: int, size_bytes: int) -> None:
        """Enqueue a copy from a device address into a pinned buffer."""
        self._copy(target.address + offset, source, size_bytes, "cudaMemcpyDeviceToHost")

    def wait(self) -> None:
        """Wait until all that was enqueued is done; other threads run meanwhile.

        Raises:
            EngineError: Something that was enqueued failed.
        """
        self._cuda.call("cudaEventRecord", self._event, self.native)
        self._cuda.call("cudaEventSynchronize", self._event)

    def drain(self) -> None:
        """Wait like `wait`, but let failures pass: after it the GPU uses no buffer of this stream any more."""
        self._cuda.release("cudaStreamSynchronize", self.native)

    def close(self) -> None:
        """Destroy it; whoever used it has waited for it."""
        self._cuda.release("cudaEventDestroy", self._event)
        self._cuda.release("cudaStreamDestroy", self.native)

    def _copy(self, target: int, source: int, size_bytes: int, direction: str) -> None:
        if size_bytes:
            kind = getattr(self._cuda.library.cudaMemcpyKind, direction)
            self._cuda.call("cudaMemcpyAsync", target, source, size_bytes, kind, self.native)
