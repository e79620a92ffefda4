# SPDX-License-Identifier: Apache-2.0
"""The TensorRT library as builds use it: whether it is there, importing it, and what it logs.

What lives here: everything before the first network. Nothing is imported with this module. Not executed on a GPU so
far: names and signatures are held against the bindings of both majors by contract tests.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from dovetail.errors import UnsupportedError, brief

_DISTRIBUTIONS = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
_DEVICES = ("/dev/nvidia[0-9]*", "/dev/nvhost-gpu", "/dev/nvgpu/igpu*", "/dev/dxg")
"""Device files of a discrete GPU, of Jetsons before and after JetPack 6, and of WSL. Source: NVIDIA driver README,
"nvidia-modprobe"; Jetson Linux; those of Jetsons are unverified."""

_LOAD_S = 60.0
_MAX_LINES = 20_000
_SHOWN = 5

INSTALL = "pip install 'dovetail[tensorrt]', or JetPack's packages"


def missing() -> str:
    """Why TensorRT cannot build here: not installed, no GPU, or not loadable; "" if nothing is known against it."""
    if importlib.util.find_spec("tensorrt") is None:
        return f"tensorrt is not installed: {INSTALL}"
    if not any(next(Path("/").glob(pattern.lstrip("/")), None) for pattern in _DEVICES):
        return "there is no NVIDIA GPU here, and TensorRT builds an engine on the GPU that it is for"
    return _load_failure()


@cache
def _load_failure() -> str:
    """Why the library does not load, found out in a process of its own; "" if it does."""
    command = [sys.executable, "-P", "-c", "import tensorrt"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_LOAD_S, check=False, text=True)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return f"tensorrt is installed but does not load: {brief(str(exc))}"
    if done.returncode == 0:
        return ""
    last = (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1]
    return f"tensorrt is installed but does not load: {brief(last)}"


def versions() -> dict[str, str]:
    """Exact versions of the packages that touch the bytes, without importing any."""
    found = {name: importlib.metadata.version(name) for name in ("numpy", "onnx", "onnxruntime")}
    for name in _DISTRIBUTIONS:
        try:
            return {**found, "tensorrt": importlib.metadata.version(name)}
        except importlib.metadata.PackageNotFoundError:
            continue
    return {**found, "tensorrt": "of the system"}  # JetPack installs it without a Python package's metadata


def import_tensorrt() -> Any:
    """The library.

    Raises:
        UnsupportedError: It is not installed, or does not load.
    """
    try:
        return importlib.import_module("tensorrt")
    except ImportError as exc:
        raise UnsupportedError(f"tensorrt does not load: {brief(str(exc))}; {INSTALL}") from exc


class BuildLog:
    """What TensorRT said, kept for the artifact and for error messages.

    Attributes:
        logger: To hand to the library.
        lines: "severity: text", oldest first; bounded.
    """

    def __init__(self, library: Any) -> None:
        self.lines: list[str] = []
        lines = self.lines
        names: Mapping[int, str] = {int(item): name for name, item in library.ILogger.Severity.__members__.items()}

        class _Logger(library.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                library.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                if len(lines) < _MAX_LINES and int(severity) <= int(library.ILogger.Severity.INFO):
                    lines.append(f"{names.get(int(severity), severity)}: {msg}")

        self.logger = _Logger()

    def errors(self) -> str:
        """The last errors and warnings in one line, "it said nothing" without any."""
        loud = [line for line in self.lines if line.startswith(("INTERNAL_ERROR", "ERROR"))] or [
            line for line in self.lines if line.startswith("WARNING")
        ]
        return brief("; ".join(loud[-_SHOWN:])) if loud else "it said nothing"

    def write(self, path: Path) -> None:
        """Write all lines."""
        path.write_text("\n".join([*self.lines, ""]), encoding="utf-8")
