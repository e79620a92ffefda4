# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs: what a stream was given once, recorded, and launched again with one call.

A recorded graph has the addresses and shapes of its recording in it, so it is good for exactly those. Small networks
win: launching their kernels one by one takes longer than running them.

Source: CUDA Runtime API, "Graph Management"; TensorRT documentation 11.x, "Optimizing TensorRT Performance", CUDA
graphs (enqueue once before recording; a failed recording leaves the execution context usable); NVIDIA/TensorRT
repository, samples/common/sampleDevice.h, TrtCudaGraph (recording in thread-local mode, clearing the last error).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dovetail.engines.cuda_runtime import Cuda
from dovetail.engines.cuda_stream import Stream
from dovetail.errors import DovetailError


class CudaGraph:
    """An executable graph. Used by one thread at a time; closed before anything whose address it holds is freed."""

    def __init__(self, cuda: Cuda, executable: Any) -> None:
        self._cuda = cuda
        self._executable = executable

    def launch(self, stream: Stream) -> None:
        """Enqueue all of it.

        Raises:
            EngineError: The runtime refused.
        """
        self._cuda.call("cudaGraphLaunch", self._executable, stream.native)

    def close(self) -> None:
        """Destroy it; no launch of it is running."""
        self._cuda.release("cudaGraphExecDestroy", self._executable)


def record_graph(cuda: Cuda, stream: Stream, enqueue: Callable[[], None]) -> CudaGraph:
    """Record what `enqueue` gives to the stream; none of it runs now.

    Other threads may go on allocating and copying meanwhile. After a failure the stream works as before.

    Raises:
        EngineError: `enqueue` failed, or gave the stream something that cannot be recorded.
    """
    mode = cuda.library.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    cuda.call("cudaStreamBeginCapture", stream.native, mode)
    try:
        enqueue()
    except BaseException:
        _abandon(cuda, stream)
        raise
    try:
        graph = cuda.call("cudaStreamEndCapture", stream.native)
    except DovetailError:
        cuda.library.cudaGetLastError()
        raise
    try:
        return CudaGraph(cuda, cuda.call("cudaGraphInstantiate", graph, 0))
    finally:
        cuda.release("cudaGraphDestroy", graph)


def _abandon(cuda: Cuda, stream: Stream) -> None:
    """End a recording that went wrong; the runtime says so by an error that must not stay behind."""
    status, graph = cuda.library.cudaStreamEndCapture(stream.native)
    if status == cuda.library.cudaError_t.cudaSuccess and cuda.handle(graph):
        cuda.release("cudaGraphDestroy", graph)
    cuda.library.cudaGetLastError()
