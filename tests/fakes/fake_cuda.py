# SPDX-License-Identifier: Apache-2.0
"""A CUDA runtime without a GPU, for tests of our calls: the real bindings' names, signatures and enums, host memory.

Whatever is asked for is looked up in the real `cuda.bindings.runtime` first, and the arguments are bound to the real
signature, so a misspelt or wrong call fails as it would on the machine. "Device" memory is memory of this process.
Streams are lazy: what is enqueued runs when somebody waits for the stream, so a missing wait shows as stale data.
Memory that is used after it was freed, or freed twice, is an AssertionError.
"""

from __future__ import annotations

import ctypes
import inspect
import threading
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda.bindings import runtime as real
from cuda.bindings.utils import get_cuda_native_handle

from dovetail.engines.cuda_runtime import Cuda

_OK = real.cudaError_t.cudaSuccess
_QUERIES = {"cudaGetErrorName", "cudaGetErrorString", "cudaGetLastError"}


class FakeCudaRuntime:
    """Stands for the module.

    Attributes:
        calls: What was called, in order: (name, *arguments).
        fail: Name -> number of the call (from 1) that fails once.
        status: What a failing call says.
        before: Name -> called before each call of it, outside the lock.
        free: What cudaMemGetInfo says is free.
        integrated: 1 if the GPUs share the host's memory.
    """

    def __init__(self, *, devices: tuple[tuple[int, int, str], ...] = ((8, 9, "NVIDIA L4"),)) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fail: dict[str, int] = {}
        self.status: Any = real.cudaError_t.cudaErrorLaunchFailure
        self.before: dict[str, Callable[..., None]] = {}
        self.free = 8 << 30
        self.integrated = 0
        self._devices = devices
        self._counts: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._next = 0x1000
        self._memory: dict[int, tuple[str, Any, int]] = {}
        self._streams: dict[int, list[Callable[[], None]]] = {}
        self._events: dict[int, int] = {}
        self._capturing: dict[int, list[Callable[[], None]]] = {}
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self._executables: dict[int, list[Callable[[], None]]] = {}

    def cuda(self) -> Cuda:
        """Our wrapper around it."""
        return Cuda(self, get_cuda_native_handle)

    def names(self) -> list[str]:
        """Names of the calls so far, queries about errors left out."""
        return [call[0] for call in self.calls if call[0] not in _QUERIES]

    def live(self) -> dict[str, int]:
        """What was created and not freed yet: kind -> count; empty when nothing leaks."""
        kinds = Counter(kind for kind, _, _ in self._memory.values())
        others = {
            "stream": self._streams,
            "event": self._events,
            "graph": self._graphs,
            "executable": self._executables,
        }
        return dict(kinds) | {name: len(found) for name, found in others.items() if found}

    def enqueue(self, stream: int, work: Callable[[], None]) -> bool:
        """Give a stream work, as a library that runs on it would; True if it is being recorded."""
        with self._lock:
            assert stream in self._streams, "work for a stream that does not exist"
            recording = stream in self._capturing
            (self._capturing if recording else self._streams)[stream].append(work)
            return recording

    def recording(self, stream: int) -> bool:
        """True while that stream records."""
        return stream in self._capturing

    def flush(self, stream: int) -> None:
        """Do all that a stream was given."""
        with self._lock:
            queue = self._streams[stream]
            while queue:
                queue.pop(0)()

    def view(self, address: int, size_bytes: int) -> Any:
        """Memory as uint8 array; it must be alive."""
        if not size_bytes:
            return np.empty(0, dtype=np.uint8)
        assert any(start <= address and address + size_bytes <= start + size for start, (_, _, size) in
                   self._memory.items()), f"{size_bytes} bytes at {address:#x} are not in live memory"  # fmt: skip
        return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))

    def __getattr__(self, name: str) -> Any:
        known = getattr(real, name)
        if not inspect.isroutine(known) or not name.startswith("cuda"):
            return known
        perform = object.__getattribute__(self, f"_{name}")

        def call(*arguments: Any) -> tuple[Any, ...]:
            inspect.signature(known).bind(*arguments)
            self.before.get(name, lambda *_: None)(*arguments)
            with self._lock:
                self.calls.append((name, *arguments))
                self._counts[name] += 1
                if self.fail.get(name) == self._counts[name]:
                    if name == "cudaStreamEndCapture":  # a recording that fails is over all the same
                        self._capturing.pop(get_cuda_native_handle(arguments[0]), None)
                    return (self.status, *([None] * 2))[: 1 + _values(known)]
                result = perform(*arguments)
            return (_OK, *result) if isinstance(result, tuple) else (_OK,) if result is None else (_OK, result)

        return call

    def _handle(self) -> int:
        self._next += 0x10
        return self._next

    def _allocate(self, kind: str, size: int) -> int:
        assert size > 0
        store = np.full(size + 256, 0xAB, dtype=np.uint8)
        address = -(-store.ctypes.data // 256) * 256
        self._memory[address] = (kind, store, size)
        return address

    def _release(self, kind: str, address: int) -> None:
        assert self._memory[address][0] == kind, f"{kind} freed as another kind"
        del self._memory[address]

    def _cudaGetErrorName(self, error: Any) -> Any:
        return real.cudaGetErrorName(error)[1]

    def _cudaGetErrorString(self, error: Any) -> Any:
        return real.cudaGetErrorString(error)[1]

    def _cudaGetLastError(self) -> None:
        return None

    def _cudaGetDeviceCount(self) -> int:
        return len(self._devices)

    def _cudaGetDeviceProperties(self, device: int) -> Any:
        major, minor, name = self._devices[device]
        known = real.cudaDeviceProp()
        assert all(hasattr(known, field) for field in ("major", "minor", "name", "integrated"))
        return SimpleNamespace(major=major, minor=minor, name=name.encode() + b"\0", integrated=self.integrated)

    def _cudaSetDevice(self, device: int) -> None:
        assert 0 <= device < len(self._devices)

    def _cudaMemGetInfo(self) -> tuple[int, int]:
        return self.free, 16 << 30

    def _cudaMalloc(self, size: int) -> int:
        return self._allocate("device", size)

    def _cudaHostAlloc(self, size: int, flags: int) -> int:
        return self._allocate("pinned", size)

    def _cudaMemset(self, address: int, value: int, size: int) -> None:
        self.view(address, size)[:] = value

    def _cudaFree(self, address: int) -> None:
        self._release("device", address)

    def _cudaFreeHost(self, address: int) -> None:
        self._release("pinned", address)

    def _cudaStreamCreateWithFlags(self, flags: int) -> Any:
        assert flags == real.cudaStreamNonBlocking
        handle = self._handle()
        self._streams[handle] = []
        return real.cudaStream_t(handle)

    def _cudaStreamDestroy(self, stream: Any) -> None:
        assert not self._streams.pop(get_cuda_native_handle(stream)), "a stream was destroyed with work in it"

    def _cudaStreamSynchronize(self, stream: Any) -> None:
        self.flush(get_cuda_native_handle(stream))

    def _cudaEventCreateWithFlags(self, flags: int) -> Any:
        handle = self._handle()
        self._events[handle] = 0
        return real.cudaEvent_t(handle)

    def _cudaEventRecord(self, event: Any, stream: Any) -> None:
        self._events[get_cuda_native_handle(event)] = get_cuda_native_handle(stream)

    def _cudaEventSynchronize(self, event: Any) -> None:
        self.flush(self._events[get_cuda_native_handle(event)])

    def _cudaEventDestroy(self, event: Any) -> None:
        del self._events[get_cuda_native_handle(event)]

    def _cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Any, stream: Any) -> None:
        kinds = real.cudaMemcpyKind
        assert kind in (kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToHost)
        into, out_of = ("device", "pinned") if kind == kinds.cudaMemcpyHostToDevice else ("pinned", "device")
        assert (self._kind_at(target), self._kind_at(source)) == (into, out_of), "a copy in another direction than told"
        self.enqueue(
            get_cuda_native_handle(stream), lambda: np.copyto(self.view(target, size), self.view(source, size))
        )

    def _kind_at(self, address: int) -> str:
        return next(kind for start, (kind, _, size) in self._memory.items() if start <= address < start + size)

    def _cudaStreamBeginCapture(self, stream: Any, mode: Any) -> None:
        assert mode == real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        handle = get_cuda_native_handle(stream)
        assert handle not in self._capturing
        self._capturing[handle] = []

    def _cudaStreamEndCapture(self, stream: Any) -> Any:
        handle = self._handle()
        self._graphs[handle] = self._capturing.pop(get_cuda_native_handle(stream))
        return real.cudaGraph_t(handle)

    def _cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:
        handle = self._handle()
        self._executables[handle] = list(self._graphs[get_cuda_native_handle(graph)])
        return real.cudaGraphExec_t(handle)

    def _cudaGraphDestroy(self, graph: Any) -> None:
        del self._graphs[get_cuda_native_handle(graph)]

    def _cudaGraphLaunch(self, executable: Any, stream: Any) -> None:
        for work in self._executables[get_cuda_native_handle(executable)]:
            self.enqueue(get_cuda_native_handle(stream), work)

    def _cudaGraphExecDestroy(self, executable: Any) -> None:
        del self._executables[get_cuda_native_handle(executable)]


def _values(known: Any) -> int:
    """How many values a function of the real module returns beside its status, as its documentation lists them."""
    text = known.__doc__ or ""
    returns = text.partition("Returns\n")[2].partition("See Also")[0]
    lines = [line for line in returns.splitlines() if line.strip() and not line.startswith("     ")]
    return sum(1 for line in lines if " : " in line and not line.strip().startswith("cudaError_t"))
