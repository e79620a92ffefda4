# SPDX-License-Identifier: Apache-2.0
"""Child script: asks ONNX Runtime for its version and for the providers that really load.

`get_available_providers()` lists what was compiled in. A GPU provider is a shared library of its own that fails at
session creation if CUDA, cuDNN or TensorRT libraries are missing, so it is loaded here once to find that out.

Source: ONNX Runtime docs, "CUDA Execution Provider", preload_dlls (1.21 and later); onnxruntime/capi of the wheel.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
from pathlib import Path
from typing import Any

# Providers that live in a shared library beside the Python module.
_LIBRARIES = {
    "CUDAExecutionProvider": "cuda",
    "TensorrtExecutionProvider": "tensorrt",
    "ROCMExecutionProvider": "rocm",
    "MIGraphXExecutionProvider": "migraphx",
    "OpenVINOExecutionProvider": "openvino",
    "NvTensorRTRTXExecutionProvider": "nv_tensorrt_rtx",
}


def _load_failure(folder: Path, name: str) -> str:
    """Why the provider's library does not load; "" if it does, or if it is part of the main library."""
    library = folder / f"libonnxruntime_providers_{name}.so"
    if not library.exists():
        return ""
    try:
        shared = folder / "libonnxruntime_providers_shared.so"
        if shared.exists():
            ctypes.CDLL(str(shared), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(library), mode=os.RTLD_LAZY)
    except OSError as exc:
        reason = str(exc).removeprefix(f"{folder}/")
        # ONNX Runtime's own loader may provide a symbol that is not there yet; a missing or broken file stays missing.
        return "" if "undefined symbol" in reason else reason
    return ""


def _ask() -> dict[str, Any]:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read at import
    import onnxruntime

    providers = list(onnxruntime.get_available_providers())
    broken: dict[str, str] = {}
    separate = [name for name in providers if name in _LIBRARIES]
    if separate and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.suppress(Exception):
            onnxruntime.preload_dlls()
    folder = Path(onnxruntime.__file__).parent / "capi"
    for name in separate:
        if reason := _load_failure(folder, _LIBRARIES[name]):
            broken[name] = reason
    details = {"build": str(onnxruntime.get_build_info())} if hasattr(onnxruntime, "get_build_info") else {}
    if cuda := getattr(onnxruntime, "cuda_version", ""):  # of packages for NVIDIA GPUs: what they were built with
        details["cuda"] = str(cuda)
    return {
        "version": str(onnxruntime.__version__),
        "devices": [name for name in providers if name not in broken],
        "broken": broken,
        "details": details,
    }


def _answer() -> dict[str, Any]:
    try:
        return _ask()
    except BaseException as exc:  # the child's one job is to report whatever happens
        return {"error": f"import or query failed: {type(exc).__name__}: {exc}"}


if __name__ == "__main__":
    print("dovetail-probe-answer " + json.dumps(_answer()), flush=True)
    os._exit(0)
