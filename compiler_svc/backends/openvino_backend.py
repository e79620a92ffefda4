# SPDX-License-Identifier: Apache-2.0
"""Builds OpenVINO IR: fp32, fp16-compressed weights, int8 through NNCF, and compressed int8 or int4 weights.

What lives here: the surface of the backend, conversion and saving. Quantisation is in `openvino_quantisation`, weight
compression in `openvino_weights`, the operator scan in `openvino_scan`, the bridge from ONNX nodes to operations in
`openvino_nodes`. The recipe's options are documented in `dovetail.rules.openvino_recipes`. IR is shipped, never a
compiled blob: a blob is bound to one runtime and CPU.

Input and output names of the IR are set to the graph's own before saving: OpenVINO keeps several names for one tensor
and would hand out any of them. Usage reports of both libraries are off (see `import_openvino`).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compiler_svc.backends import openvino_nodes, openvino_quantisation, openvino_weights
from compiler_svc.backends.base import BuildInput, BuildOutput, OperatorSupport
from compiler_svc.backends.openvino_calibration import without_torch
from compiler_svc.backends.openvino_scan import scan_operators, unsupported_operators
from dovetail.contract import Contract
from dovetail.engines.openvino_engine import import_openvino, without_source_positions
from dovetail.errors import BuildFailedError, PreconditionError, UnsupportedError, brief
from dovetail.recipe import Recipe
from dovetail.tensor import TensorSpec

ENGINE = "openvino"
ADAPTER_REVISION = "3"
"""Part of every artifact key: raise it whenever a change here changes the bytes that are built."""

_EXECUTION = ("f32", "bf16", "f16")

_Step = Callable[[BuildInput, Any], tuple[Any, dict[str, str]]]


def toolchain() -> Mapping[str, str]:
    """Exact versions of everything that touches the bytes; empty if something needed is not installed."""
    if missing():
        return {}
    versions = {name: importlib.metadata.version(name) for name in ("nncf", "numpy", "openvino")}
    return {**versions, "dovetail-openvino-backend": ADAPTER_REVISION}


def missing() -> str:
    """Why this backend cannot build here, or ""."""
    for name in ("openvino", "nncf"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed: pip install 'dovetail[compiler]'"
    return ""


def scan(model: Path) -> OperatorSupport:
    """Convert the model and ask the CPU plugin about each operation."""
    return scan_operators(model)


def quantisable_nodes(model: Path, recipe: Recipe) -> tuple[str, ...]:
    """Heavy nodes that the recipe would quantise, in graph order; see `openvino_nodes.quantised_nodes`."""
    return openvino_nodes.quantised_nodes(model, recipe)


def build(order: BuildInput) -> BuildOutput:
    """Build one recipe.

    Raises:
        UnsupportedError: The recipe asks for something that this backend does not know, or names an unknown node.
        PreconditionError: Calibration samples are needed and there are none.
        BuildFailedError: The library failed.
    """
    step = _step(order.recipe)
    openvino = import_openvino()
    try:
        order.report(0.1, "converting the graph")
        model = _converted(openvino, order.model)
        _set_names(model.inputs, order.inputs)
        known = openvino_nodes.graph_names(order.model)
        openvino_nodes.name_anonymous(model, known)  # before and after: a step derives names and adds operations
        with without_torch():
            model, labels = step(order, model)
        _set_names(model.outputs, order.outputs)
        openvino_nodes.name_anonymous(model, known)
        order.report(0.9, "saving")
        xml = order.scratch / "model.xml"
        compress = bool(order.recipe.options.get("compress_to_fp16", False))
        openvino.save_model(model, str(xml), compress_to_fp16=compress)
    except (UnsupportedError, PreconditionError, MemoryError, OSError):
        raise
    except Exception as exc:  # openvino raises RuntimeError, nncf its own family and the standard ones
        raise _failure(order.recipe, exc) from exc
    files = {"model.xml": xml, "model.bin": xml.with_suffix(".bin")}
    return BuildOutput(files, _final(order.contract, openvino.get_version()), labels)


def _step(recipe: Recipe) -> _Step:
    """What happens between conversion and saving; the options that no step reads are checked here."""
    options = recipe.options
    steps: Mapping[str, _Step] = {
        "none": _as_converted,
        "static": openvino_quantisation.quantise,
        "weights": openvino_weights.compress,
    }
    wanted = str(options.get("quantization", "none"))
    for option, value, known in (
        ("form", str(options.get("form", "ir")), ("ir",)),
        ("execution_precision", str(options.get("execution_precision", "f32")), _EXECUTION),
        ("quantization", wanted, tuple(steps)),
    ):
        if value not in known:
            raise UnsupportedError(
                f"recipe {recipe.name}: {option} {value!r} is not one that this backend builds: {', '.join(known)}"
            )
    return steps[wanted]


def _converted(openvino: Any, path: Path) -> Any:
    """The model with the library's own common simplifications, which reading alone does not do.

    Without them every bias of an ONNX convolution hangs behind a chain of shape computations, where NNCF does not see
    it: bias correction then changes nothing, and weights behind a constant expression are not quantised.
    """
    model = openvino.convert_model(str(path))
    if model.has_rt_info(["conversion_parameters", "input_model"]):
        model.set_rt_info("model.onnx", ["conversion_parameters", "input_model"])  # not what the file is called here
    return model


def _as_converted(order: BuildInput, model: Any) -> tuple[Any, dict[str, str]]:
    return model, {}


def _set_names(ports: Sequence[Any], specs: Sequence[TensorSpec]) -> None:
    if len(ports) != len(specs):
        raise BuildFailedError(f"openvino gives {len(ports)} tensors where the model has {len(specs)}")
    for port, spec in zip(ports, specs, strict=True):
        port.get_tensor().set_names({spec.name})


def _final(contract: Contract, version: str) -> Contract:
    """The contract with the release that really wrote the files ("2026.4.1-22982-e213…" -> "2026.4.1")."""
    release = version.split("-")[0]
    found = {"producer_version": release, "ov_min": ".".join(release.split(".")[:2])}
    return replace(contract, details={**contract.details, **found})


def _failure(recipe: Recipe, exc: Exception) -> UnsupportedError | BuildFailedError:
    if names := unsupported_operators(str(exc)):
        return UnsupportedError(
            f"openvino cannot build {recipe.name}: it has no {', '.join(names)}; onnxruntime recipes may still fit"
        )
    return BuildFailedError(f"openvino could not build {recipe.name}: {brief(without_source_positions(str(exc)))}")
