# SPDX-License-Identifier: Apache-2.0
"""Child script: asks TensorRT (full, lean or dispatch) for its version as a 4-tuple.

Plans load only if major.minor.patch.build are all equal, but Jetson's packages write three numbers into
`__version__`; the library itself knows the fourth.

It also tells what the operator of this machine allows: DOVETAIL_TENSORRT_HOST_CODE=allow lets lean runtimes inside
plans run, DOVETAIL_TENSORRT_PLUGINS ("<sha256>" or "<sha256>=<path>", separated by commas or blanks) the plugins with
these digests. Both are native code that came with an artifact, so both are off unless set (rules T3, T15).

Source: TensorRT support policies, "Version compatibility"; NvInferRuntime.h, getInferLibBuildVersion (10.0 and later).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import sys
from collections.abc import Mapping
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
    return {"version": version, "devices": ["cuda"], "details": {**details, **_leave(os.environ)}}


def _leave(environ: Mapping[str, str]) -> dict[str, str]:
    """What the operator allows; nothing but the exact words counts."""
    found = {}
    if environ.get("DOVETAIL_TENSORRT_HOST_CODE", "") == "allow":
        found["host_code_allowed"] = "true"
    listed = environ.get("DOVETAIL_TENSORRT_PLUGINS", "").replace(",", " ").split()
    digests = [part.partition("=")[0] for part in listed]
    known = [digest for digest in digests if len(digest) == 64 and set(digest) <= set("0123456789abcdef")]
    if known:
        found["plugins_allowed"] = ",".join(known)
    return found


def _answer(module: str) -> dict[str, Any]:
    try:
        return _ask(module)
    except BaseException as exc:  # the child's one job is to report whatever happens
        return {"error": f"import or query failed: {type(exc).__name__}: {exc}"}


if __name__ == "__main__":
    print("dovetail-probe-answer " + json.dumps(_answer(sys.argv[1])), flush=True)
    os._exit(0)
