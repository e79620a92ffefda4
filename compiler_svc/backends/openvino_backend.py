# SPDX-License-Identifier: Apache-2.0
"""Builds OpenVINO IR: fp32, fp16-compressed weights, and int8 through NNCF.

What lives here: calls into openvino and nncf, led by the recipe's options (their names are in
`dovetail.rules.openvino_rules`). IR is shipped, never a compiled blob: a blob is bound to one runtime and CPU.

Input and output names of the IR are set to the graph's own before saving: OpenVINO keeps several names for one tensor
and would hand out any of them. Usage reports of both libraries are off (see `import_openvino`).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compiler_svc.backends.base import BuildInput, BuildOutput, OperatorSupport, sample_feeds
from dovetail.contract import Contract
from dovetail.engines.openvino_engine import import_openvino, without_source_positions
from dovetail.errors import BuildFailedError, PreconditionError, UnsupportedError, brief
from dovetail.recipe import Recipe
from dovetail.tensor import TensorSpec

ENGINE = "openvino"
ADAPTER_REVISION = "1"
"""Part of every artifact key: raise it whenever a change here changes the bytes that are built."""

_NO_RULE = re.compile(r"No conversion rule found for operations: (.+)")


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
    openvino = import_openvino()
    core = openvino.Core()
    try:
        converted = core.read_model(str(model))
        supported = set(core.query_model(converted, "CPU"))
    except RuntimeError as exc:
        return OperatorSupport(False, _unsupported(str(exc)))
    texts = [port.get_any_name() for port in (*converted.inputs, *converted.outputs)
             if port.get_element_type().get_type_name() == "string"]  # fmt: skip
    if texts:
        return OperatorSupport(False, tuple(f"text tensor {name}" for name in texts))
    refused = {op.get_type_name() for op in converted.get_ops() if op.get_friendly_name() not in supported}
    return OperatorSupport(not refused, tuple(sorted(refused)))


def build(order: BuildInput) -> BuildOutput:
    """Build one recipe.

    Raises:
        UnsupportedError: The recipe asks for something that this backend does not know, or names an unknown node.
        PreconditionError: int8 without calibration samples.
        BuildFailedError: The library failed.
    """
    options = order.recipe.options
    if str(options.get("form", "ir")) != "ir":
        raise UnsupportedError(
            f"recipe {order.recipe.name}: form {options.get('form')!r}; this backend builds 'ir' only"
        )
    openvino = import_openvino()
    try:
        order.report(0.1, "converting the graph")
        model = openvino.Core().read_model(str(order.model))
        _set_names(model.inputs, order.inputs)
        _set_names(model.outputs, order.outputs)
        labels: dict[str, str] = {}
        if order.recipe.precision == "int8":
            model, labels = _quantised(order, model)
            _set_names(model.outputs, order.outputs)
        order.report(0.9, "saving")
        xml = order.scratch / "model.xml"
        openvino.save_model(model, str(xml), compress_to_fp16=bool(options.get("compress_to_fp16", False)))
    except (UnsupportedError, PreconditionError, MemoryError, OSError):
        raise
    except RuntimeError as exc:
        if _NO_RULE.search(str(exc)):
            raise UnsupportedError(
                f"openvino cannot build {order.recipe.name}: it has no {', '.join(_unsupported(str(exc)))}; onnxruntime"
                " recipes may still fit"
            ) from exc
        raise _failure(order.recipe, exc) from exc
    except Exception as exc:  # openvino raises RuntimeError, nncf its own family and the standard ones
        raise _failure(order.recipe, exc) from exc
    files = {"model.xml": xml, "model.bin": xml.with_suffix(".bin")}
    return BuildOutput(files, _final(order.contract, openvino.get_version()), labels)


def _set_names(ports: Sequence[Any], specs: Sequence[TensorSpec]) -> None:
    if len(ports) != len(specs):
        raise BuildFailedError(f"openvino gives {len(ports)} tensors where the model has {len(specs)}")
    for port, spec in zip(ports, specs, strict=True):
        port.get_tensor().set_names({spec.name})


def _quantised(order: BuildInput, model: Any) -> tuple[Any, dict[str, str]]:
    """Post-training quantisation with NNCF."""
    if not order.calibration:
        raise PreconditionError(
            f"recipe {order.recipe.name} needs calibration samples and the model has none; push it with --calibration"
        )
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)  # nncf.set_log_level also changes handlers that are not its own
    options = order.recipe.options
    method = str(options.get("calibration_method", "minmax"))
    ranges = _range_estimator(method, order.recipe)
    limit = int(options.get("subset_size", 300))
    feeds = list(sample_feeds(order.calibration, order.inputs, limit=limit))
    order.report(0.3, f"calibrating on {len(feeds)} samples")
    model_type = str(options.get("model_type", "none"))
    quantised = nncf.quantize(
        model,
        nncf.Dataset(feeds),
        preset=nncf.QuantizationPreset(str(options.get("preset", "performance"))),
        target_device=nncf.TargetDevice(str(options.get("target_device", "CPU"))),
        subset_size=len(feeds),
        fast_bias_correction=bool(options.get("fast_bias_correction", True)),
        model_type=None if model_type == "none" else nncf.ModelType(model_type),
        ignored_scope=_ignored(nncf, order, model),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix(str(options.get("overflow_fix", "first_layer_only"))),
            activations_range_estimator_params=ranges,
        ),
    )
    return quantised, {"calibration": f"{method}, {len(feeds)} samples"}


def _range_estimator(method: str, recipe: Recipe) -> Any:
    """How the range of an activation is found over the samples.

    Always passed on: NNCF's own default is the mean of the samples' ranges, which cuts off whatever is larger than
    usual (on a digit classifier 27.6 dB against 39.3 dB with "minmax", NNCF 3.4).
    """
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet as Ranges

    methods = {"minmax": Ranges.MINMAX, "mean_minmax": Ranges.MEAN_MINMAX, "histogram": Ranges.HISTOGRAM}
    if method not in methods:
        expected = ", ".join(methods)
        raise UnsupportedError(f"recipe {recipe.name}: calibration_method {method!r} is unknown, expected {expected}")
    return methods[method]


def _ignored(nncf: Any, order: BuildInput, model: Any) -> Any:
    """OpenVINO's operations that stand for the recipe's excluded ONNX nodes; None if there are none."""
    if not order.recipe.excluded_nodes:
        return None
    names = sorted(_operations_of(order.recipe, order.model, model))
    return nncf.IgnoredScope(names=names)


def _operations_of(recipe: Recipe, source: Path, model: Any) -> set[str]:
    """Find what the excluded nodes became: by their name, by the parts named after it ("conv2/WithoutBiases"), and by
    the tensors that they write.
    """
    import onnx

    outputs = {node.name: set(node.output) for node in onnx.load(str(source)).graph.node}
    found: set[str] = set()
    for name in recipe.excluded_nodes:
        written = outputs.get(name, set())
        matches = {op.get_friendly_name() for op in model.get_ops() if _stands_for(op, name, written)}
        if not matches:
            raise UnsupportedError(
                f"recipe {recipe.name} excludes node {name!r}, which the converted graph does not have"
            )
        found |= matches
    return found


def _stands_for(operation: Any, name: str, written: set[str]) -> bool:
    if operation.get_type_name() in ("Constant", "Result"):
        return False
    friendly = str(operation.get_friendly_name())
    if friendly == name or friendly.startswith(f"{name}/"):
        return True
    return any(written & port.get_names() for port in operation.outputs())


def _final(contract: Contract, version: str) -> Contract:
    """The contract with the release that really wrote the files ("2026.4.1-22982-e213…" -> "2026.4.1")."""
    release = version.split("-")[0]
    found = {"producer_version": release, "ov_min": ".".join(release.split(".")[:2])}
    return replace(contract, details={**contract.details, **found})


def _unsupported(text: str) -> tuple[str, ...]:
    if match := _NO_RULE.search(text):
        return tuple(_operator(name.strip()) for name in match.group(1).split(","))
    return (brief(without_source_positions(text)),)


def _operator(name: str) -> str:
    """Turn "Foo-21" into "Foo (opset 21)" and "com.example.Foo" into "com.example::Foo"."""
    standard, _, version = name.rpartition("-")
    if standard and version.isdigit():
        return f"{standard} (opset {version})"
    domain, _, operator = name.rpartition(".")
    return f"{domain}::{operator}" if domain else operator


def _failure(recipe: Recipe, exc: Exception) -> BuildFailedError:
    return BuildFailedError(f"openvino could not build {recipe.name}: {brief(without_source_positions(str(exc)))}")
