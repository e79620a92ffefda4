# SPDX-License-Identifier: Apache-2.0
"""Records the names and signatures of TensorRT's Python bindings; run by hand when a release is added, never by tests.

The bindings' wheel on the package index (`tensorrt-cu13-bindings`) is a real extension module that only lacks
TensorRT's libraries. It takes nine functions from them and calls none when it is imported, so with empty libraries of
those names it imports anywhere, and its own classes tell their names, enum values and signatures. Nothing of TensorRT
runs and no text of it is copied, only names:

    pip download --no-deps --dest wheel tensorrt-cu13-bindings==11.4.0.106
    python tests/contract/tensorrt_api_record.py wheel/*.whl > tests/contract/tensorrt_api_11.json

Needs a C compiler ("cc") and the Python that the wheel is for. Layers and plugin classes are left out: Dovetail builds
networks with the ONNX parser only.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

_LIBRARIES = ("nvonnxparser", "nvinfer_plugin", "nvinfer")
_FUNCTIONS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip
_LEFT_OUT = re.compile(r"^I(?!Layer$)\w+Layer$|Plugin(?!Registry$)|^PluginField|^common_|^attr$|^value$")
_MODULE = "tensorrt_bindings.tensorrt."


def main() -> None:
    """Print the record of the wheel that is named on the command line."""
    if sys.argv[1] == "--inside":
        json.dump(recorded(sys.argv[2]), sys.stdout, indent=1)
        print()
        return
    wheel = Path(sys.argv[1])
    major = wheel.name.split("-")[1].split(".")[0]
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(wheel).extractall(folder)
        source = Path(folder, "empty.c")
        source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _FUNCTIONS))
        for name in _LIBRARIES:
            library = f"lib{name}.so.{major}"
            flags = ["-shared", "-fPIC", f"-Wl,-soname,{library}"]
            subprocess.run(["cc", *flags, "-o", str(Path(folder, library)), str(source)], check=True)
        environment = {**os.environ, "LD_LIBRARY_PATH": folder, "PYTHONPATH": folder}
        subprocess.run([sys.executable, __file__, "--inside", wheel.name], env=environment, check=True)


def recorded(wheel: str) -> dict[str, Any]:
    """Names of the bindings that can be imported now."""
    import tensorrt_bindings

    names = sorted(name for name in vars(tensorrt_bindings) if not name.startswith("_") and not _LEFT_OUT.search(name))
    items = {name: getattr(tensorrt_bindings, name) for name in names}
    kinds = {item: name for name, item in items.items() if isinstance(item, type)}
    return {
        "source": f"PyPI, {wheel}: classes of the extension module itself, imported with empty libraries "
        "(tests/contract/tensorrt_api_record.py); layers and plugin classes left out",
        "version": tensorrt_bindings.__version__,
        "functions": {name: _signatures(item.__doc__) for name, item in items.items() if _is_function(item)},
        "constants": {
            name: f"{kinds[type(item)]}.{item.name}" for name, item in items.items() if type(item) in kinds
        },
        "python_functions": sorted(name for name, item in items.items() if type(item).__name__ == "function"),
        "classes": {name: _class(item) for name, item in items.items() if isinstance(item, type)},
    }  # fmt: skip


def _class(kind: Any) -> dict[str, Any]:
    if hasattr(kind, "__members__"):
        return {"enum": {name: int(member) for name, member in kind.__members__.items()}}
    found: dict[str, Any] = {
        "bases": [base.__name__ for base in kind.__mro__[1:] if base.__module__.startswith("tensorrt_bindings")],
        "init": [], "methods": {}, "properties": {}, "constants": {}, "nested": {},
    }  # fmt: skip
    for name, item in sorted(vars(kind).items()):
        if name == "__init__":
            found["init"] = _signatures(item.__doc__)
        elif name.startswith("_"):
            if name in ("__len__", "__getitem__", "__iter__", "__call__"):
                found["methods"][name] = _signatures(item.__doc__)
        elif isinstance(item, property):
            text = _signatures(item.fget.__doc__)
            found["properties"][name] = {
                "type": text[0].rpartition(" -> ")[2] if text else "object",
                "writable": item.fset is not None,
            }
        elif isinstance(item, type):
            found["nested"][name] = _class(item)
        elif callable(item) or isinstance(item, staticmethod):
            found["methods"][name] = _signatures(getattr(item, "__doc__", ""))
        else:
            found["constants"][name] = f"{type(item).__qualname__}.{item.name}" if hasattr(item, "name") else repr(item)
    return found


def _signatures(text: str | None) -> list[str]:
    """Signatures as pybind11 writes them: one line, or a numbered list of overloads."""
    lines = [line.strip() for line in (text or "").splitlines()]
    plain = [re.sub(r"^\d+\. ", "", line) for line in lines if re.match(r"^(\d+\. )?\w*\(.*\)( -> .+)?$", line)]
    kept = [line for line in plain if not line.startswith(("_", "(self, ")) or line.startswith("__")]
    signatures = [line for line in kept if "*args, **kwargs" not in line]
    if not re.search(r"Overloaded function", text or ""):
        signatures = signatures[:1]
    return [re.sub(r"<[\w.]+: -?\d+>|<[^>]*>", "...", line.replace(_MODULE, "")) for line in signatures]


def _is_function(item: Any) -> bool:
    return type(item).__name__ == "builtin_function_or_method"


if __name__ == "__main__":
    main()
