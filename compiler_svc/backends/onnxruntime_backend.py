# SPDX-License-Identifier: Apache-2.0
"""Builds ONNX Runtime artifacts: the surface of the backend, and which builder a recipe needs.

What lives here: versions, the operator scan, the order of a build's steps. How each kind is built is in
`onnxruntime_float`, `onnxruntime_quantise` and `onnxruntime_weight_only`, led by the recipe's options (their names are
in `dovetail.rules.onnxruntime_recipes`). What is worth building is the rules' business; whether the result is good
enough is the gate's.

Every file that leaves here has only the operator domains that its nodes use, and never the layout-bound
`com.microsoft.nchwc`: the node optimises for its own CPU when it loads.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from compiler_svc.backends import onnxruntime_files as files
from compiler_svc.backends import onnxruntime_nodes
from compiler_svc.backends.base import BuildInput, BuildOutput, OperatorSupport
from compiler_svc.backends.onnxruntime_float import build_float, build_half
from compiler_svc.backends.onnxruntime_gpu import with_shape_profile
from compiler_svc.backends.onnxruntime_quantise import build_dynamic, build_static
from compiler_svc.backends.onnxruntime_weight_only import build_weight_only
from dovetail.errors import BuildFailedError, PreconditionError, UnsupportedError, brief
from dovetail.recipe import Recipe

ENGINE = "onnxruntime"
ADAPTER_REVISION = "2"
"""Part of every artifact key: raise it whenever a change here changes the bytes that are built."""

_Builder = Callable[[BuildInput, Path, Path], dict[str, str]]

_BUILDERS: Mapping[str, _Builder] = {
    "none": build_float,
    "half": build_half,
    "dynamic": build_dynamic,
    "static": build_static,
    "weights": build_weight_only,
}
"""By the recipe's option `quantization`; each writes the model to the path it gets and gives labels."""

_UNKNOWN_OPERATOR = (
    re.compile(r"No Op registered for (?P<op>\S+) with domain_version of (?P<version>\d+)"),
    re.compile(r"Fatal error: (?P<domain>\S+):(?P<op>\w+)\((?P<version>-?\d+)\) is not a registered function/op"),
    re.compile(r"Could not find an implementation for (?P<op>\S+?)\((?P<version>\d+)\)"),
)


def toolchain() -> Mapping[str, str]:
    """Exact versions of everything that touches the bytes; empty if something needed is not installed."""
    if missing():
        return {}
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "onnx", "onnxruntime")}
    return {**versions, "dovetail-onnxruntime-backend": ADAPTER_REVISION}


def missing() -> str:
    """Why this backend cannot build here, or ""."""
    for name in ("onnxruntime", "onnx"):
        if importlib.util.find_spec(name) is None or not _installed(name):
            return f"{name} is not installed: pip install 'dovetail[compiler]'"
    return ""


def scan(model: Path) -> OperatorSupport:
    """Load the model as it is; on refusal name the operators that the library names."""
    import onnxruntime

    settings = files.session_options(onnxruntime, threads=1)
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        onnxruntime.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
    except Exception as exc:  # the library raises its own family, which does not share a public base
        return OperatorSupport(False, (_unsupported(str(exc)),))
    return OperatorSupport(True)


def quantisable_nodes(model: Path, recipe: Recipe) -> tuple[str, ...]:
    """Heavy nodes that the recipe would quantise, in graph order; nameless ones by the name that the build gives."""
    import onnx

    graph = onnx.load(str(model), load_external_data=False)
    onnxruntime_nodes.name_nodes(graph)
    return onnxruntime_nodes.quantised_names(graph, recipe)


def build(order: BuildInput) -> BuildOutput:
    """Build one recipe.

    Raises:
        UnsupportedError: The recipe asks for something that this backend does not know, or names an unknown node.
        PreconditionError: Static quantisation without calibration samples.
        BuildFailedError: The library failed.
    """
    kind = str(order.recipe.options.get("quantization", "none"))
    if kind not in _BUILDERS:
        raise UnsupportedError(
            f"recipe {order.recipe.name}: quantization {kind!r} is unknown, expected {', '.join(_BUILDERS)}"
        )
    path = order.scratch / files.MODEL
    work = order.scratch / "work"
    work.mkdir(exist_ok=True)
    try:
        labels = _BUILDERS[kind](order, path, work)
        contract = with_shape_profile(files.tidy(path, order.contract), order.inputs)
    except (UnsupportedError, PreconditionError, BuildFailedError, MemoryError, OSError):
        raise
    except Exception as exc:  # the tools raise ValueError, RuntimeError, AttributeError and their own, undocumented
        raise BuildFailedError(f"onnxruntime could not build {order.recipe.name}: {brief(str(exc))}") from exc
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return BuildOutput(files.shipped(path), contract, labels)


def _unsupported(text: str) -> str:
    for pattern in _UNKNOWN_OPERATOR:
        if match := pattern.search(text):
            found = match.groupdict()
            name = f"{found['domain']}::{found['op']}" if found.get("domain") else found["op"]
            version = found["version"]
            return f"{name} (opset {version})" if not version.startswith("-") else name
    return brief(text)


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
