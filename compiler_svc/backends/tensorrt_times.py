# SPDX-License-Identifier: Apache-2.0
"""Times of an engine's layers: a run of its own with TensorRT's profiler, as `trtexec --exportProfile` makes one.

Times of single layers are for finding the slow ones; with the profiler on, layers do not overlap, so they do not add up
to the time of a request. That is measured elsewhere, without it.

Not executed on a GPU so far: names and signatures are held against the bindings of both majors by contract tests.

Source: TensorRT Python API 10.16 and 11.4, IProfiler, IExecutionContext.profiler.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from dovetail.engines.cuda_memory import BufferPool
from dovetail.engines.cuda_runtime import Cuda
from dovetail.engines.cuda_stream import Stream
from dovetail.engines.tensorrt_io import IoTensor, describe, layout_of, shape_of
from dovetail.errors import EngineError, UnsupportedError

WARMUP_RUNS = 3
RUNS = 10
"""Profiled runs; a choice: the median of ten is steady enough to rank layers."""

_POOL_BYTES = 1 << 36  # not a limit: inputs and outputs of one call


def layer_times(library: Any, cuda: Cuda, engine: Any) -> dict[str, Any]:
    """Run an engine with its first profile's usual shapes, on zeros, and give the times of its layers.

    Args:
        library: The module `tensorrt`.
        cuda: The runtime; the calling thread's current device is used.
        engine: Deserialised, with its weights.

    Returns:
        A JSON document: {"runs", "shapes", "total_ms", "layers": [{"name", "median_ms", "share"}]}, slowest first.

    Raises:
        UnsupportedError: A tensor is in host memory, or an output's size is only known after a run.
        EngineError: TensorRT or CUDA failed.
        OverLimitError: The GPU has no memory left for it.
    """
    tensors = describe(library, engine)
    if any(tensor.on_host for tensor in tensors):
        raise UnsupportedError("a tensor that holds a shape is in host memory")
    stream = Stream(cuda)
    try:
        pool = BufferPool(cuda, pinned=False, limit_bytes=_POOL_BYTES)
        try:
            return _profiled(library, cuda, engine, tensors, stream, pool)
        finally:
            stream.drain()
            pool.close()
    finally:
        stream.close()


def _profiled(
    library: Any, cuda: Cuda, engine: Any, tensors: tuple[IoTensor, ...], stream: Stream, pool: BufferPool
) -> dict[str, Any]:
    context = engine.create_execution_context()
    if context is None or not context.set_optimization_profile_async(0, stream.handle):
        raise EngineError("tensorrt gives no execution context for profile 0")
    stream.wait()
    shapes = _shapes(engine, context, tensors)
    layout = layout_of(tensors, shapes)
    buffer = pool.take(layout.size_bytes)
    profiler = _profiler(library)
    try:
        cuda.call("cudaMemset", buffer.address, 0, buffer.size_bytes)
        for tensor in tensors:
            if not context.set_tensor_address(tensor.name, buffer.address + layout.offsets[tensor.name]):
                raise EngineError(f"tensorrt does not take the address of {tensor.name!r}")
        _run(context, stream, WARMUP_RUNS)
        context.profiler = profiler
        _run(context, stream, RUNS)
    finally:
        stream.drain()
        pool.give(buffer)
    return _document(profiler.times, {name: list(shape) for name, shape in shapes.items()})


def _shapes(engine: Any, context: Any, tensors: tuple[IoTensor, ...]) -> dict[str, tuple[int, ...]]:
    for tensor in tensors:
        if tensor.is_input and -1 in tensor.spec.shape:
            usual = shape_of(engine.get_tensor_profile_shape(tensor.name, 0)[1])
            if not context.set_input_shape(tensor.name, usual):
                raise EngineError(f"tensorrt does not take shape {usual} of input {tensor.name!r}")
    if lacking := context.infer_shapes():
        raise EngineError(f"tensorrt does not know the shapes of {', '.join(lacking)}")
    shapes = {tensor.name: shape_of(context.get_tensor_shape(tensor.name)) for tensor in tensors}
    if open_ended := [name for name, shape in shapes.items() if -1 in shape]:
        raise UnsupportedError(f"the size of {open_ended[0]!r} is only known after a run")
    return shapes


def _run(context: Any, stream: Stream, count: int) -> None:
    for _ in range(count):
        if not context.execute_async_v3(stream.handle):
            raise EngineError("tensorrt does not run the engine")
        stream.wait()


def _profiler(library: Any) -> Any:
    class _Profiler(library.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            library.IProfiler.__init__(self)
            self.times: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.setdefault(layer_name, []).append(float(ms))

    return _Profiler()


def _document(times: Mapping[str, list[float]], shapes: Mapping[str, list[int]]) -> dict[str, Any]:
    medians = {name: statistics.median(found) for name, found in times.items()}
    total = sum(medians.values())
    rows = [
        {"name": name, "median_ms": round(medians[name], 6), "share": round(medians[name] / total, 4) if total else 0.0}
        for name in sorted(medians, key=lambda name: -medians[name])
    ]
    return {"runs": RUNS, "shapes": dict(shapes), "total_ms": round(total, 6), "layers": rows}
