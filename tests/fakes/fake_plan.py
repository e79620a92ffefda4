# SPDX-License-Identifier: Apache-2.0
"""A TensorRT engine without TensorRT: the strict stand-in's names and signatures, and a network made of numpy.

It keeps TensorRT's rules that a caller can break: shapes within the active profile, an address for every tensor
(aligned, and different ones), shapes inferred before a run, scratch memory lent, no recording of a run that is the
first after a change or whose output sizes hang on data. What it computes is computed when the fake CUDA runtime
reaches it in the stream.
"""

from __future__ import annotations

import struct
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.fakes.fake_cuda import FakeCudaRuntime
from tests.fakes.strict_tensorrt import calls_of, made, strict_tensorrt

Arrays = Mapping[str, Any]
_NUMPY = {"FLOAT": "f4", "HALF": "f2", "BF16": "u2", "INT8": "i1", "INT32": "i4", "INT64": "i8", "BOOL": "?",
          "UINT8": "u1", "FP8": "u1", "INT4": "u1", "FP4": "u1"}  # fmt: skip


@dataclass
class FakeTensor:
    """An input or output."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    is_input: bool = False
    host: bool = False
    format: str = "LINEAR"


@dataclass
class FakeNetwork:
    """What a plan holds.

    Attributes:
        tensors: Inputs and outputs.
        profiles: For each profile: input -> (min, opt, max) shape.
        compute: Inputs to outputs.
        sizes: Inputs' shapes and host values to the outputs' shapes; -1 where data decides.
        scratch: Bytes of scratch memory of one context.
        values: For each profile: input that holds a shape -> (min, opt, max) values.
        recordable: False for a network with loops.
    """

    tensors: list[FakeTensor]
    profiles: list[dict[str, tuple[tuple[int, ...], ...]]]
    compute: Callable[[Arrays], Arrays]
    sizes: Callable[[Mapping[str, tuple[int, ...]], Arrays], Mapping[str, tuple[int, ...]]]
    scratch: int = 4096
    values: list[dict[str, tuple[tuple[int, ...], ...]]] = field(default_factory=list)
    recordable: bool = True

    def tensor(self, name: str) -> FakeTensor:
        """By name."""
        return next(tensor for tensor in self.tensors if tensor.name == name)


def doubling(batches: tuple[tuple[int, int, int], ...] = ((1, 4, 8),), dtype: str = "FLOAT") -> FakeNetwork:
    """y = 2 x, of shape (batch, 3); one profile for each (min, opt, max) batch."""
    return FakeNetwork(
        tensors=[FakeTensor("x", dtype, (-1, 3), is_input=True), FakeTensor("y", dtype, (-1, 3))],
        profiles=[{"x": tuple((batch, 3) for batch in span)} for span in batches],
        compute=lambda feeds: {"y": feeds["x"] + feeds["x"]},
        sizes=lambda shapes, _: {"y": shapes["x"]},
    )


def plan_bytes(version: str, *, magic: int = 0x74727466, zero: int = 0, body: bytes = b"weights") -> bytes:
    """A plan's header as TensorRT writes it, and something behind it."""
    return struct.pack("<II16x4B", magic, zero, *(int(part) for part in version.split("."))) + body


def write_plan(folder: Path, version: str) -> Path:
    """A plan on disk, named by no name that TensorRT would know."""
    path = folder / "0123abcd"
    path.write_bytes(plan_bytes(version))
    return path


def tensorrt_with(
    network: FakeNetwork, cuda: FakeCudaRuntime, *, major: int = 11, script: Mapping[str, Any] | None = None
) -> Any:
    """The `tensorrt` module of that major, whose runtime loads any plan as this network."""
    fake = _FakeRuntime(network, cuda)
    fake.trt = strict_tensorrt(major=major, script={**fake.script(), **(script or {})})
    return fake.trt


def complain(trt: Any, text: str) -> None:
    """Tell the logger of the newest runtime, as TensorRT does before it returns None or False."""
    logger = next(call[1] for call in reversed(calls_of(trt)) if call[0] == "Runtime")
    logger.log(trt.ILogger.Severity.ERROR, text)


class _FakeRuntime:
    def __init__(self, network: FakeNetwork, cuda: FakeCudaRuntime) -> None:
        self.network, self.cuda = network, cuda
        self.trt: Any = None

    def script(self) -> dict[str, Any]:
        network = self.network
        engine = "ICudaEngine."
        return {
            "init_libnvinfer_plugins": True,
            "Runtime.deserialize_cuda_engine": self._deserialize,
            engine + "num_io_tensors": len(network.tensors),
            engine + "num_optimization_profiles": len(network.profiles),
            engine + "device_memory_size_v2": network.scratch,
            engine + "get_device_memory_size_for_profile_v2": lambda this, index: network.scratch - index,
            engine + "get_tensor_name": lambda this, index: network.tensors[index].name,
            engine + "get_tensor_dtype": lambda this, name: self.trt.DataType[network.tensor(name).dtype],
            engine + "get_tensor_format": lambda this, name: self.trt.TensorFormat[network.tensor(name).format],
            engine + "get_tensor_shape": lambda this, name: network.tensor(name).shape,
            engine + "get_tensor_mode": self._mode,
            engine + "get_tensor_location": self._location,
            engine + "is_shape_inference_io": lambda this, name: network.tensor(name).host,
            engine + "get_tensor_profile_shape": lambda this, name, index: list(network.profiles[index][name]),
            engine + "get_tensor_profile_values": lambda this, index, name: list(network.values[index][name]),
            engine + "create_execution_context": self._context,
            **{f"IExecutionContext.{name}": _on_state(name) for name in _METHODS},
            "IExecutionContext.active_optimization_profile": lambda this: this.__dict__["state"].profile,
        }

    def _deserialize(self, this: Any, plan: Any) -> Any:
        engine = made(self.trt, "ICudaEngine")
        weakref.finalize(engine, self.cuda.calls.append, ("engine destroyed",))
        weakref.finalize(this, self.cuda.calls.append, ("runtime destroyed",))
        return engine

    def _mode(self, this: Any, name: str) -> Any:
        return self.trt.TensorIOMode["INPUT" if self.network.tensor(name).is_input else "OUTPUT"]

    def _location(self, this: Any, name: str) -> Any:
        return self.trt.TensorLocation["HOST" if self.network.tensor(name).host else "DEVICE"]

    def _context(self, this: Any, strategy: Any) -> Any:
        assert strategy == self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = made(self.trt, "IExecutionContext")
        context.__dict__["state"] = _ContextState(self.network, self.cuda)
        self.cuda.calls.append(("context made",))
        weakref.finalize(context, self.cuda.calls.append, ("context destroyed",))
        return context


class _ContextState:
    """What an execution context remembers."""

    def __init__(self, network: FakeNetwork, cuda: FakeCudaRuntime) -> None:
        self.network, self.cuda = network, cuda
        self.profile = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.allocators: dict[str, Any] = {}
        self.scratch = (0, 0)
        self.inferred = self.settled = False

    def set_device_memory(self, memory: int, size: int) -> None:
        self.scratch = (memory, size)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert 0 <= profile_index < len(self.network.profiles)
        self.profile, self.shapes, self.settled = profile_index, {}, False
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.network.profiles[self.profile][name]
        self.inferred = self.settled = False
        self.shapes[name] = shape
        return len(shape) == len(low) and all(a <= dim <= b for a, dim, b in zip(low, shape, high, strict=True))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return memory % 256 == 0 and memory != 0

    def set_output_allocator(self, name: str, output_allocator: Any) -> bool:
        self.allocators[name] = output_allocator
        return True

    def infer_shapes(self) -> list[str]:
        inputs = [tensor for tensor in self.network.tensors if tensor.is_input]
        missing = [
            tensor.name
            for tensor in inputs
            if tensor.name not in self.shapes or (tensor.host and tensor.name not in self.addresses)
        ]
        if not missing:
            values = {tensor.name: self._array(tensor) for tensor in inputs if tensor.host}
            self.shapes.update(self.network.sizes(self.shapes, values))
            self.inferred = True
        return missing

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self.inferred, "shapes were not inferred"
        memory, size = self.scratch
        assert size >= self.network.scratch
        self.cuda.view(memory, size)
        bound = [self.addresses[t.name] for t in self.network.tensors if t.name not in self.allocators]
        assert len(set(bound)) == len(bound), "two tensors have one address"
        recording = self.cuda.recording(stream_handle)
        if recording and (not self.settled or self.allocators or not self.network.recordable):
            return False
        self.settled = True
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        if self.allocators:
            self.cuda.flush(stream_handle)
            outputs = self.network.compute(self._inputs(shapes, addresses))
            for name, allocator in self.allocators.items():
                need = max(outputs[name].nbytes, 1)
                address = allocator.reallocate_output_async(name, addresses.get(name, 0), need, 256, stream_handle)
                if not address:
                    return False
                addresses[name] = address
                allocator.notify_shape(name, outputs[name].shape)
        self.cuda.calls.append(("compute", stream_handle, recording))
        self.cuda.enqueue(stream_handle, lambda: self._compute(shapes, addresses))
        return True

    def _compute(self, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]) -> None:
        self.cuda.view(self.scratch[0], self.scratch[1])
        for name, result in self.network.compute(self._inputs(shapes, addresses)).items():
            wanted = np.ascontiguousarray(result, dtype=_NUMPY[self.network.tensor(name).dtype])
            self.cuda.view(addresses[name], wanted.nbytes)[:] = wanted.reshape(-1).view(np.uint8)

    def _inputs(self, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]) -> dict[str, Any]:
        return {t.name: self._read(t, shapes[t.name], addresses[t.name]) for t in self.network.tensors if t.is_input}

    def _array(self, tensor: FakeTensor) -> Any:
        return self._read(tensor, self.shapes[tensor.name], self.addresses[tensor.name])

    def _read(self, tensor: FakeTensor, shape: tuple[int, ...], address: int) -> Any:
        dtype = np.dtype(_NUMPY[tensor.dtype])
        size = int(np.prod(shape)) * dtype.itemsize
        return self.cuda.view(address, size).view(dtype).reshape(shape).copy()


_METHODS = (
    "set_device_memory", "set_optimization_profile_async", "set_input_shape", "set_tensor_address",
    "set_output_allocator", "infer_shapes", "get_tensor_shape", "execute_async_v3",
)  # fmt: skip


def _on_state(name: str) -> Callable[..., Any]:
    return lambda this, *arguments: getattr(this.__dict__["state"], name)(*arguments)
