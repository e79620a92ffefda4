# SPDX-License-Identifier: Apache-2.0
"""Child script: asks OpenVINO which devices it can use and what they can do.

Device enumeration has killed processes with some NPU drivers (OpenVINO issue 36456), which is why it happens here.

Source: OpenVINO documentation, "Query Device Properties"; property names of OpenVINO 2025 and 2026.
"""

from __future__ import annotations

import json
import os
from typing import Any

# Property -> name in the details. Marketing names are kept for people; nothing decides by them.
_PROPERTIES = {
    "OPTIMIZATION_CAPABILITIES": "capabilities",
    "FULL_DEVICE_NAME": "name",
    "DEVICE_ARCHITECTURE": "architecture",
    "GPU_DEVICE_TOTAL_MEM_SIZE": "memory_bytes",
    "GPU_EXECUTION_UNITS_COUNT": "execution_units",
    "GPU_UARCH_VERSION": "uarch",
    "GPU_DRIVER_VERSION": "driver",
    "NPU_DRIVER_VERSION": "driver",
    "NPU_COMPILER_VERSION": "compiler",
    "NPU_PLATFORM": "platform",
}


def _ask() -> dict[str, Any]:
    import openvino

    core = openvino.Core()
    build = str(openvino.get_version())
    devices = [str(name) for name in core.available_devices]
    details = {"build": build}
    for device in devices:
        supported = set(core.get_property(device, "SUPPORTED_PROPERTIES"))
        for name, short in _PROPERTIES.items():
            if name not in supported:
                continue
            try:
                value = core.get_property(device, name)
            except Exception:  # noqa: S112 - one property that a plugin cannot answer must not hide the rest
                continue
            text = " ".join(sorted(str(item) for item in value)) if isinstance(value, (list, tuple)) else str(value)
            details[f"{device}.{short}"] = text
    return {"version": build.split("-")[0], "devices": devices, "details": details}


def _answer() -> dict[str, Any]:
    try:
        return _ask()
    except BaseException as exc:  # the child's one job is to report whatever happens
        return {"error": f"import or query failed: {type(exc).__name__}: {exc}"}


if __name__ == "__main__":
    print("dovetail-probe-answer " + json.dumps(_answer()), flush=True)
    os._exit(0)
