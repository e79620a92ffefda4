# SPDX-License-Identifier: Apache-2.0
"""Which inference libraries are installed, and what they can use here.

Installed is decided without importing anything; only then a child process imports the library. A library whose child
crashes, hangs or fails is left out with its reason: what cannot even be asked will not serve a model. torch is the
exception: importing it takes seconds, and its version file says all that rules need.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dovetail.fingerprint import Accelerator, RuntimeLibrary
from dovetail.probe.child import TIMEOUT_S, Answer, ask
from dovetail.probe.sysroot import Notes

_TORCH_VERSION_LIMIT_BYTES = 64 * 1024

# Providers and devices that need hardware which a library cannot see by itself.
_NEEDS_DEVICE = {
    "CUDAExecutionProvider": "nvidia_gpu",
    "TensorrtExecutionProvider": "nvidia_gpu",
    "NvTensorRTRTXExecutionProvider": "nvidia_gpu",
    "ROCMExecutionProvider": "amd_gpu",
    "MIGraphXExecutionProvider": "amd_gpu",
    "cuda": "nvidia_gpu",
}


OPERATOR_LEAVE = ("DOVETAIL_TENSORRT_HOST_CODE", "DOVETAIL_TENSORRT_PLUGINS")
"""Variables by which an operator lets native code of artifacts run; the child of the library reports them."""


@dataclass(frozen=True, slots=True)
class Library:
    """How one library is found and asked.

    Attributes:
        name: Its name in the fingerprint.
        module: Python module whose presence means "installed".
        child: Child script that asks it; "" if its package version is all that is wanted.
        distributions: Package names that may carry it, the usual one first.
    """

    name: str
    module: str
    child: str
    distributions: tuple[str, ...]


LIBRARIES = (
    Library(
        "onnxruntime",
        "onnxruntime",
        "onnxruntime",
        (
            "onnxruntime",
            "onnxruntime-gpu",
            "onnxruntime-openvino",
            "onnxruntime-migraphx",
            "onnxruntime-rocm",
            "onnxruntime-qnn",
        ),
    ),
    Library("openvino", "openvino", "openvino", ("openvino",)),
    Library("tensorrt", "tensorrt", "tensorrt", ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")),
    Library(
        "tensorrt_lean", "tensorrt_lean", "tensorrt", ("tensorrt-lean", "tensorrt-lean-cu13", "tensorrt-lean-cu12")
    ),
    Library("tvm", "tvm", "", ("apache-tvm",)),
    Library("iree", "iree.runtime", "", ("iree-base-runtime", "iree-runtime")),
    Library("litert", "ai_edge_litert", "", ("ai-edge-litert",)),
)


def module_file(module: str) -> Path | None:
    """File of a module that could be imported, without importing it; None if it is not installed.

    A folder without code (left behind by an uninstall, or a folder of that name beside the script) does not count.
    """
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin and spec.has_location else None


def package_version(distributions: Sequence[str]) -> tuple[str, str]:
    """Package name and version of the first installed one of those, ("", "") if none is."""
    from importlib import metadata  # 50 ms that a machine without any library need not pay

    for name in distributions:
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "", ""


async def ask_libraries(
    notes: Notes, libraries: Sequence[Library] = LIBRARIES, *, timeout_s: float = TIMEOUT_S
) -> dict[str, RuntimeLibrary]:
    """All installed libraries except torch, asked at the same time."""
    installed = [library for library in libraries if module_file(library.module) is not None]
    for library in libraries:
        if library not in installed:
            notes.missing(library.name, "not installed")
    answers = await asyncio.gather(*(_ask_library(library, timeout_s) for library in installed))
    found = {}
    for library, answer in zip(installed, answers, strict=True):
        read = _read(library, answer, notes)
        if read is not None:
            found[library.name] = read
    return found


async def _ask_library(library: Library, timeout_s: float) -> Answer:
    if not library.child:
        return Answer(document={"version": ""})
    return await ask(library.child, library.module, timeout_s=timeout_s)


def _read(library: Library, answer: Answer, notes: Notes) -> RuntimeLibrary | None:
    package, installed_version = package_version(library.distributions)
    if answer.reason:
        notes.missing(
            library.name, f"{package or library.module} {installed_version} is installed but unusable: {answer.reason}"
        )
        return None
    for name, reason in _strings(answer.document.get("broken")).items():
        notes.missing(f"{library.name}.{name}", reason)
    version = str(answer.document.get("version") or installed_version)
    if not version:
        notes.missing(library.name, "installed, but neither the library nor its package tells a version")
        return None
    devices = answer.document.get("devices", ())
    details = _strings(answer.document.get("details"))
    if package and package != library.name:
        details["package"] = package
    notes.found(library.name, "asked in a child process" if library.child else f"package {package}")
    return RuntimeLibrary(
        version=version,
        devices=tuple(str(device) for device in devices) if isinstance(devices, list) else (),
        details=details,
    )


def _strings(value: Any) -> dict[str, str]:
    return {str(name): str(item) for name, item in value.items()} if isinstance(value, Mapping) else {}


def read_torch(notes: Notes, init_file: Path | None) -> RuntimeLibrary | None:
    """What its version file says about torch; `init_file` is `module_file("torch")`.

    The version carries its build tag ("2.13.0+cpu"). Devices are what the build was made for; `usable` drops those
    whose hardware is not here.
    """
    if init_file is None:
        notes.missing("torch", "not installed")
        return None
    try:
        with init_file.with_name("version.py").open("rb") as file:
            values = parse_assignments(file.read(_TORCH_VERSION_LIMIT_BYTES).decode(errors="replace"))
    except (OSError, SyntaxError, ValueError) as exc:
        notes.missing("torch", f"installed, but its version file cannot be read: {type(exc).__name__}")
        return None
    version = values.get("__version__", "")
    if not version:
        notes.missing("torch", "installed, but its version file names no version")
        return None
    cuda, hip = values.get("cuda", ""), values.get("hip", "")
    if cuda and "+" not in version:
        version = f"{version}+cu{cuda.replace('.', '')}"
    notes.found("torch", "torch/version.py")
    details = {name: value for name, value in (("cuda", cuda), ("hip", hip)) if value}
    return RuntimeLibrary(version=version, devices=("cpu", "cuda") if cuda else ("cpu",), details=details)


def parse_assignments(source: str) -> dict[str, str]:
    """Module-level names that are assigned a string.

    Raises:
        SyntaxError: Not Python.
    """
    values = {}
    for node in ast.parse(source).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        value = getattr(node, "value", None)
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            values.update({target.id: value.value for target in targets if isinstance(target, ast.Name)})
    return values


def usable(
    runtimes: Mapping[str, RuntimeLibrary], accelerators: Sequence[Accelerator], notes: Notes
) -> dict[str, RuntimeLibrary]:
    """The same libraries without devices and providers whose hardware is not here."""
    kinds = {device.kind for device in accelerators}
    kept = {}
    for name, library in runtimes.items():
        lacking = [device for device in library.devices if _NEEDS_DEVICE.get(device) not in {None, *kinds}]
        for device in lacking:
            notes.missing(f"{name}.{device}", f"needs an {_NEEDS_DEVICE[device]}, none was found")
        devices = tuple(device for device in library.devices if device not in lacking)
        kept[name] = RuntimeLibrary(version=library.version, devices=devices, details=library.details)
    return kept
