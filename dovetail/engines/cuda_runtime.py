# SPDX-License-Identifier: Apache-2.0
"""The CUDA runtime through NVIDIA's own bindings: opening it, choosing a GPU, and calls whose errors are ours.

What lives here: the one place where `cuda.bindings.runtime` is imported and where its status codes become exceptions
that name the call. Memory, streams and graphs are built on it in the files beside this one. Nothing is imported with
this module, so that a machine without a GPU pays nothing.

The bindings release the interpreter's lock inside every call from 12.9.1 on; before that a waiting thread would stop
all others, so older ones are refused.

Source: cuda-bindings release notes 12.9.1 (lock, native handles); CUDA Runtime API, "Error Handling" and "Device
Management".
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dovetail.errors import EngineError, OverLimitError, UnsupportedError, brief

_log = logging.getLogger(__name__)

_MEMINFO = Path("/proc/meminfo")
_INSTALL = "pip install 'dovetail[tensorrt]'"


@dataclass(frozen=True, slots=True)
class CudaDevice:
    """One GPU as the runtime numbers it.

    Attributes:
        ordinal: Its number in this process; CUDA may number them otherwise than NVML does.
        compute_capability: "8.9".
        product: "NVIDIA L4".
        integrated: True if its memory is the host's (Jetson).
    """

    ordinal: int
    compute_capability: str
    product: str
    integrated: bool = False


class Cuda:
    """The runtime. Thread-safe: it holds no state but the library; the current device belongs to each thread.

    Args:
        library: `cuda.bindings.runtime`.
        native_handle: `cuda.bindings.utils.get_cuda_native_handle`.
    """

    def __init__(self, library: Any, native_handle: Any) -> None:
        self.library = library
        self._native_handle = native_handle

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the runtime.

        Returns:
            What it returns beside its status: None, one value, or a tuple of several.

        Raises:
            OverLimitError: The GPU or the host has no memory left for it.
            EngineError: Any other failure; names the call and the runtime's own word for the error.
        """
        status, *values = getattr(self.library, name)(*arguments)
        if status != self.library.cudaError_t.cudaSuccess:
            raise self._error(name, status)
        if not values:
            return None
        return values[0] if len(values) == 1 else tuple(values)

    def release(self, name: str, *arguments: Any) -> None:
        """Call a function that frees something; a failure is logged, because the rest must be freed all the same."""
        try:
            self.call(name, *arguments)
        except (EngineError, OverLimitError) as error:
            _log.warning("cuda.release_failed call=%s why=%r", name, str(error))

    def handle(self, thing: Any) -> int:
        """The address behind a stream, event or graph, as other libraries want it."""
        return int(self._native_handle(thing))

    def free_bytes(self, device: CudaDevice) -> int:
        """Memory that is free on the device, which is current; another process may be faster.

        On an integrated GPU the driver does not count what the kernel would give up of its file cache, so there the
        kernel's own word counts if it is more.

        Source: CUDA for Tegra, "Estimating Total Allocatable Device Memory on an Integrated GPU Device".
        """
        free, _total = self.call("cudaMemGetInfo")
        return max(int(free), _available_host_bytes()) if device.integrated else int(free)

    def devices(self) -> tuple[CudaDevice, ...]:
        """All GPUs that this process may use."""
        return tuple(self._device(ordinal) for ordinal in range(int(self.call("cudaGetDeviceCount"))))

    def use(self, device: CudaDevice) -> None:
        """Make it the calling thread's device; every thread that calls the runtime does so first."""
        self.call("cudaSetDevice", device.ordinal)

    def _device(self, ordinal: int) -> CudaDevice:
        found = self.call("cudaGetDeviceProperties", ordinal)
        name = found.name.decode(errors="replace") if isinstance(found.name, bytes) else str(found.name)
        return CudaDevice(ordinal, f"{found.major}.{found.minor}", name.rstrip("\0"), bool(found.integrated))

    def _error(self, name: str, status: Any) -> EngineError | OverLimitError:
        _, word = self.library.cudaGetErrorName(status)
        _, text = self.library.cudaGetErrorString(status)
        said = f"{_text(word)} ({_text(text)})"
        if status == self.library.cudaError_t.cudaErrorMemoryAllocation:
            return OverLimitError(f"{name} failed: {said}: use a smaller batch, fewer streams or a smaller artifact")
        return EngineError(f"{name} failed: {brief(said)}")


def open_cuda() -> Cuda:
    """The runtime, if this machine can use it.

    Raises:
        UnsupportedError: The bindings, the driver or a GPU is missing; says which.
    """
    try:
        library = importlib.import_module("cuda.bindings.runtime")
        native_handle = importlib.import_module("cuda.bindings.utils").get_cuda_native_handle
    except (ImportError, AttributeError) as exc:
        raise UnsupportedError(f"cuda-bindings 12.9.1 or newer is not installed here: {_INSTALL}") from exc
    except (OSError, RuntimeError) as exc:  # the bindings are there, a library that they open is not
        raise UnsupportedError(f"the CUDA runtime cannot be opened: {brief(str(exc))}") from exc
    cuda = Cuda(library, native_handle)
    try:
        count = int(cuda.call("cudaGetDeviceCount"))
    except (EngineError, RuntimeError) as exc:
        raise UnsupportedError(
            f"this machine has no NVIDIA driver that serves its CUDA runtime: {brief(str(exc))}: install or update the "
            "driver (in a container: the NVIDIA Container Toolkit, and start it with --gpus all)"
        ) from exc
    if count < 1:
        raise UnsupportedError("the NVIDIA driver shows no GPU to this process: check CUDA_VISIBLE_DEVICES")
    return cuda


def choose_device(cuda: Cuda, compute_capability: str, product: str) -> CudaDevice:
    """The GPU that an artifact is for: same capability and product, else same capability, else the first.

    The same order as `dovetail.rules.tensorrt_recipes.chosen_gpu`, which judged the artifact.
    """
    devices = cuda.devices()
    same = [device for device in devices if device.compute_capability == compute_capability]
    exact = [device for device in same if device.product == product]
    return (exact or same or list(devices))[0]


def _available_host_bytes() -> int:
    """The kernel's MemAvailable; 0 where it does not say."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return 0


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
