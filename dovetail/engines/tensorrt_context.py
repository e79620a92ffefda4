# SPDX-License-Identifier: Apache-2.0
"""One execution context with the shapes and device memory that it is bound to, and the graph recorded from it.

Contexts share the engine's weights. Those of one stream also share their scratch memory ("user managed"), because they
run one after the other; it is lent by the lane that makes them. A context keeps its bindings from run to run: as long
as shapes stay the same, a run is a copy in, one launch and a copy out.

Source: TensorRT Python API 10.16 and 11.4, IExecutionContext; TensorRT documentation 11.x, "Optimizing TensorRT
Performance", CUDA graphs: one execution context for each recorded graph, sharing their memory.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dovetail.engines.cuda_graph import CudaGraph, record_graph
from dovetail.engines.cuda_memory import Buffer, BufferPool
from dovetail.engines.cuda_runtime import Cuda
from dovetail.engines.cuda_stream import Stream
from dovetail.engines.tensorrt_io import IoTensor, Layout, Shape, layout_of, shape_of
from dovetail.engines.tensorrt_log import TensorRtLog
from dovetail.engines.tensorrt_outputs import OutputAllocator, output_allocator
from dovetail.engines.tensorrt_profiles import Profile
from dovetail.errors import DovetailError, EngineError, brief
from dovetail.tensor import NUMPY_DTYPES, Array

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What all contexts of one engine share.

    Attributes:
        trt: The `tensorrt` module.
        cuda: The CUDA runtime.
        engine: The deserialised engine.
        log: Where TensorRT says why something failed.
        tensors: Its inputs and outputs, in its order.
        profiles: Its optimisation profiles.
        device_pool: Device memory.
        pinned_pool: Page-locked host memory.
    """

    trt: Any
    cuda: Cuda
    engine: Any
    log: TensorRtLog
    tensors: tuple[IoTensor, ...]
    profiles: tuple[Profile, ...]
    device_pool: BufferPool
    pinned_pool: BufferPool


class BoundContext:
    """An execution context. Used by one thread at a time, on one stream.

    Args:
        loaded: The engine and what belongs to it.
        stream: Where it runs.
        scratch: Its scratch memory on the device, shared with other contexts of the stream; None if it needs none.

    Raises:
        EngineError: TensorRT made no context.

    Attributes:
        layout_in: Where the device's inputs lie; set by `bind`.
        recordable: True if its runs can be recorded as a graph: nothing of it depends on the host or on data.
    """

    def __init__(self, loaded: Loaded, stream: Stream, scratch: Buffer | None) -> None:
        self._loaded = loaded
        self._stream = stream
        strategy = loaded.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._context: Any = loaded.engine.create_execution_context(strategy)
        if self._context is None:
            raise EngineError(f"TensorRT made no execution context: {loaded.log.since_last() or 'it says no reason'}")
        if scratch is not None:
            self._context.set_device_memory(scratch.address, loaded.engine.device_memory_size_v2)
        self._key: object = None
        self._runs = 0
        self._graph: CudaGraph | None = None
        self._unrecordable = False
        self._buffers: dict[str, Buffer] = {}
        self._allocators: dict[str, OutputAllocator] = {}
        self._shapes: dict[str, Shape] = {}
        self._host_places: dict[str, tuple[str, int]] = {}
        self.layout_in = self._layout_out = Layout({}, 0)
        self.recordable = False

    @property
    def input_buffer(self) -> Buffer:
        """Device memory of the inputs, laid out as `layout_in` says."""
        return self._buffers["in"]

    def bind(self, key: object, profile: Profile, feeds: Mapping[str, Array]) -> None:
        """Prepare for inputs of these shapes; does nothing if it is prepared for the same key already.

        Args:
            key: Says what the shapes (and the values of inputs that hold shapes) are.
            profile: Holds them.
            feeds: The inputs.

        Raises:
            EngineError: TensorRT refuses.
            OverLimitError: No memory left.
        """
        if self._key == key:
            return
        self._unbind()
        try:
            self._bind_shapes(profile, feeds)
            self._bind_memory()
        except RuntimeError as exc:
            raise self._refused(f"cannot take inputs of shape {_told(feeds)}", str(exc)) from exc
        self._key = key

    def enqueue(self, *, record: bool) -> None:
        """Give one run to the stream: as a graph if there is one, and record it first if that is wanted.

        The first run after `bind` is never recorded: TensorRT finishes its preparations in it.

        Raises:
            EngineError: TensorRT or the runtime refuses.
            OverLimitError: No memory left for an output whose size the data decides.
        """
        for allocator in self._allocators.values():
            allocator.begin()
        if record and self._graph is None and self._runs and self.recordable and not self._unrecordable:
            self._record()
        if self._graph is not None:
            self._graph.launch(self._stream)
        else:
            self._execute()
        self._runs += 1

    def device_outputs(self) -> list[tuple[IoTensor, Shape, int]]:
        """Outputs on the device of the run that was enqueued last: tensor, shape, address.

        Raises:
            EngineError: TensorRT did not say the shape of an output.
        """
        return [self._device_output(tensor) for tensor in self._outputs(on_host=False)]

    def output_block(self) -> tuple[Buffer, Layout] | None:
        """The buffer of the device's outputs, if all of them lie in one."""
        return None if self._allocators or "out" not in self._buffers else (self._buffers["out"], self._layout_out)

    def host_outputs(self) -> dict[str, Array]:
        """Outputs that TensorRT wrote into the host's memory; call it when the stream is empty."""
        return {tensor.name: self._host_view(tensor).copy() for tensor in self._outputs(on_host=True)}

    def close(self) -> None:
        """Free the graph, then the context, then its memory; nothing of it runs any more."""
        self._unbind()
        self._context = None
        for allocator in self._allocators.values():
            allocator.close()
        self._allocators.clear()

    def _bind_shapes(self, profile: Profile, feeds: Mapping[str, Array]) -> None:
        context, loaded = self._context, self._loaded
        if context.active_optimization_profile != profile.index and not context.set_optimization_profile_async(
            profile.index, self._stream.handle
        ):
            raise self._refused(f"does not switch to optimisation profile {profile.index}")
        self._shapes = {tensor.name: feeds[tensor.name].shape for tensor in loaded.tensors if tensor.is_input}
        for name, shape in self._shapes.items():
            if not context.set_input_shape(name, shape):
                raise self._refused(f"cannot take input {name!r} of shape {list(shape)}")
        for tensor in self._bind_host("host-in", is_input=True):
            np.copyto(self._host_view(tensor), feeds[tensor.name])
        missing = context.infer_shapes()
        if missing:
            raise self._refused(f"cannot infer shapes: {', '.join(missing)} not specified")
        for tensor in loaded.tensors:
            if not tensor.is_input:
                self._shapes[tensor.name] = shape_of(context.get_tensor_shape(tensor.name))
        self._bind_host("host-out", is_input=False)

    def _bind_host(self, block: str, *, is_input: bool) -> list[IoTensor]:
        """Tensors that hold shapes: TensorRT reads them from the host as it infers shapes, and again as it runs."""
        tensors = [tensor for tensor in self._loaded.tensors if tensor.on_host and tensor.is_input == is_input]
        if tensors:
            layout = layout_of(tensors, self._shapes)
            self._buffers[block] = self._loaded.pinned_pool.take(layout.size_bytes)
            self._host_places.update({name: (block, offset) for name, offset in layout.offsets.items()})
        for tensor in tensors:
            self._address(tensor, self._buffers[block].address + self._host_places[tensor.name][1])
        return tensors

    def _bind_memory(self) -> None:
        pool = self._loaded.device_pool
        inputs = [tensor for tensor in self._loaded.tensors if tensor.is_input and not tensor.on_host]
        outputs = self._outputs(on_host=False)
        known = [tensor for tensor in outputs if -1 not in self._shapes[tensor.name]]
        self.layout_in, self._layout_out = layout_of(inputs, self._shapes), layout_of(known, self._shapes)
        self._buffers["in"] = pool.take(self.layout_in.size_bytes)
        if known:
            self._buffers["out"] = pool.take(self._layout_out.size_bytes)
        for tensor in inputs:
            self._address(tensor, self.input_buffer.address + self.layout_in.offsets[tensor.name])
        for tensor in outputs:
            if tensor in known:
                self._address(tensor, self._buffers["out"].address + self._layout_out.offsets[tensor.name])
            else:
                self._allocate_later(tensor)
        self.recordable = not self._allocators and not self._host_places

    def _allocate_later(self, tensor: IoTensor) -> None:
        if tensor.name not in self._allocators:
            allocator = output_allocator(self._loaded.trt, self._loaded.device_pool)
            if not self._context.set_output_allocator(tensor.name, allocator):
                raise self._refused(f"takes no output allocator for {tensor.name!r}")
            self._allocators[tensor.name] = allocator

    def _address(self, tensor: IoTensor, address: int) -> None:
        if not self._context.set_tensor_address(tensor.name, address):
            raise self._refused(f"takes no address for {tensor.name!r}")

    def _execute(self) -> None:
        try:
            done = self._context.execute_async_v3(self._stream.handle)
        except RuntimeError as exc:
            raise self._refused("failed while running", str(exc)) from exc
        if not done:
            for allocator in self._allocators.values():
                if (failure := allocator.failure()) is not None:
                    raise failure
            raise self._refused("failed while running")

    def _record(self) -> None:
        """Networks with loops or conditions cannot be recorded; they run as before."""
        try:
            self._graph = record_graph(self._loaded.cuda, self._stream, self._execute)
        except DovetailError as error:
            self._unrecordable = True
            _log.warning("tensorrt.graph_not_recorded why=%r", str(error))

    def _outputs(self, *, on_host: bool) -> list[IoTensor]:
        return [tensor for tensor in self._loaded.tensors if not tensor.is_input and tensor.on_host == on_host]

    def _device_output(self, tensor: IoTensor) -> tuple[IoTensor, Shape, int]:
        allocator = self._allocators.get(tensor.name)
        if allocator is None:
            address = self._buffers["out"].address + self._layout_out.offsets[tensor.name]
            return tensor, self._shapes[tensor.name], address
        shape = allocator.shape()
        if shape is None or -1 in shape:
            raise self._refused(f"did not say the shape of output {tensor.name!r}")
        return tensor, shape, allocator.address()

    def _host_view(self, tensor: IoTensor) -> Array:
        shape = self._shapes[tensor.name]
        block, offset = self._host_places[tensor.name]
        raw = self._buffers[block].bytes_view(offset, tensor.size_bytes(shape))
        return raw.view(NUMPY_DTYPES[tensor.spec.datatype]).reshape(shape)

    def _unbind(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        self._key, self._runs, self._unrecordable = None, 0, False
        for buffer in self._buffers.values():
            (self._loaded.pinned_pool if buffer.pinned else self._loaded.device_pool).give(buffer)
        self._buffers.clear()
        self._host_places.clear()

    def _refused(self, what: str, said: str = "") -> EngineError:
        reason = brief("; ".join(text for text in (said, self._loaded.log.since_last()) if text))
        return EngineError(f"TensorRT {what}: {reason or 'it says no reason'}")


def _told(feeds: Mapping[str, Array]) -> str:
    return ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
