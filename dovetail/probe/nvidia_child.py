# SPDX-License-Identifier: Apache-2.0
"""Child script: asks NVML, and where it does not answer the CUDA driver, which NVIDIA devices are here.

Stands alone: run by path in a process of its own. NVML needs the `nvidia-ml-py` package (the "nvidia" extra); without
it, and on Jetsons whose driver has no NVML, libcuda is called directly. No CUDA context is made, so no device memory
is used.

Source: NVML API reference (NVIDIA driver 570 and later); CUDA driver API 12.x, "Device Management".
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable
from typing import Any

_ATTRIBUTE_MULTIPROCESSORS = 16
_ATTRIBUTE_INTEGRATED = 18
_ATTRIBUTE_MAJOR = 75
_ATTRIBUTE_MINOR = 76
_NAME_BYTES = 256


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _ask_nvml() -> dict[str, Any]:
    import pynvml

    def maybe(call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except (pynvml.NVMLError, AttributeError, TypeError):  # not supported here, or by this driver
            return None

    def memory(handle: Any) -> Any:
        return maybe(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2) or maybe(
            pynvml.nvmlDeviceGetMemoryInfo, handle
        )

    def describe(handle: Any, parent: Any) -> dict[str, Any]:
        sizes = memory(handle)
        attributes = maybe(pynvml.nvmlDeviceGetAttributes_v2, handle) if handle is not parent else None
        return {
            "name": _text(pynvml.nvmlDeviceGetName(handle)),
            "uuid": _text(maybe(pynvml.nvmlDeviceGetUUID, handle) or ""),
            "compute_capability": list(pynvml.nvmlDeviceGetCudaComputeCapability(parent)),
            "cores": maybe(pynvml.nvmlDeviceGetNumGpuCores, handle),
            "multiprocessors": getattr(attributes, "multiprocessorCount", None),
            "memory_bytes": int(sizes.total) if sizes else None,
            "memory_free_bytes": int(sizes.free) if sizes else None,
            "mig": handle is not parent,
        }

    def slices(handle: Any) -> list[Any]:
        mode = maybe(pynvml.nvmlDeviceGetMigMode, handle)
        if not mode or mode[0] != 1:  # (current, pending); 1 is enabled
            return [handle]
        count = maybe(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0
        found = (maybe(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index) for index in range(count))
        return [part for part in found if part is not None]

    pynvml.nvmlInit()
    parents = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    return {
        "source": "NVML",
        "driver": _text(maybe(pynvml.nvmlSystemGetDriverVersion) or ""),
        "cuda": maybe(pynvml.nvmlSystemGetCudaDriverVersion_v2) or 0,
        "devices": [describe(part, parent) for parent in parents for part in slices(parent)],
    }


def _ask_cuda() -> dict[str, Any]:
    cuda = ctypes.CDLL("libcuda.so.1")
    number = ctypes.c_int()

    def check(status: int, what: str) -> None:
        if status:
            raise OSError(f"{what} failed with CUDA error {status}")

    check(cuda.cuInit(0), "cuInit")
    check(cuda.cuDriverGetVersion(ctypes.byref(number)), "cuDriverGetVersion")
    version = number.value
    check(cuda.cuDeviceGetCount(ctypes.byref(number)), "cuDeviceGetCount")
    return {
        "source": "CUDA driver",
        "driver": "",
        "cuda": version,
        "devices": [_cuda_device(cuda, i) for i in range(number.value)],
    }


def _cuda_device(cuda: Any, ordinal: int) -> dict[str, Any]:
    device, number = ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGet(ctypes.byref(device), ordinal)

    def attribute(which: int) -> int:
        return 0 if cuda.cuDeviceGetAttribute(ctypes.byref(number), which, device) else number.value

    name = ctypes.create_string_buffer(_NAME_BYTES)
    cuda.cuDeviceGetName(name, _NAME_BYTES, device)
    total = ctypes.c_size_t()
    cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device)
    unified = bool(attribute(_ATTRIBUTE_INTEGRATED))
    return {
        "name": name.value.decode(errors="replace"),
        "uuid": "",
        "compute_capability": [attribute(_ATTRIBUTE_MAJOR), attribute(_ATTRIBUTE_MINOR)],
        "cores": None,
        "multiprocessors": attribute(_ATTRIBUTE_MULTIPROCESSORS),
        "memory_bytes": None if unified else total.value,
        "memory_free_bytes": None,
        "mig": False,
    }


def _answer() -> dict[str, Any]:
    reasons = []
    for name, call in (("NVML", _ask_nvml), ("libcuda", _ask_cuda)):
        try:
            document = call()
        except Exception as exc:  # the child's one job is to report whatever happens
            reasons.append(f"{name}: {type(exc).__name__}: {exc}")
            continue
        if document["devices"]:
            return document
        reasons.append(f"{name}: no device")
    return {"error": "; ".join(reasons)}


if __name__ == "__main__":
    print("dovetail-probe-answer " + json.dumps(_answer()), flush=True)
    os._exit(0)
