# SPDX-License-Identifier: Apache-2.0
"""Child script: asks TensorRT (full, lean or dispatch) for its version as a 4-tuple.

Plans load only if major.minor.patch.build are all equal, but Jetson's packages write three numbers into
`__version__`; the library itself knows the fourth.

Source: TensorRT support policies, "Version compatibility"; NvInferRuntime.h, getInferLibBuildVersion (10.0 and later).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import sys
from typing import Any

_LIBRARIES = {
    "tensorrt": "libnvinfer.so",
    "tensorrt_lean": "libnvinfer_lean.so",
    "tensorrt_dispatch": "libnvinfer_dispatch.so",
}


def _ask(module: str) -> dict[str, Any]:
    library = importlib.import_module(module)
    version = str(library.__version__).split("+")[0]
    details = {"python": version}
    if version.count(".") == 2:
        with contextlib.suppress(OSError, AttributeError):
            native = ctypes.CDLL(f"{_LIBRARIES[module]}.{version.split('.')[0]}")
            version = f"{version}.{int(native.getInferLibBuildVersion())}"
            details["build"] = "getInferLibBuildVersion"
    return {"version": version, "devices": ["cuda"], "details": details}


def _answer(module: str) -> dict[str, Any]:
    try:
        return _ask(module)
    except BaseException as exc:  # the child's one job is to report whatever happens
        return {"error": f"import or query failed: {type(exc).__name__}: {exc}"}


if __name__ == "__main__":
    print("dovetail-probe-answer " + json.dumps(_answer(sys.argv[1])), flush=True)
    os._exit(0)
