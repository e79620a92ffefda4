# SPDX-License-Identifier: Apache-2.0
"""Builds ONNX Runtime artifacts: fp32 optimised as far as it stays portable, dynamic int8, static int8 (QDQ).

What lives here: calls into onnxruntime and its quantisation tools, led by the recipe's options (their names are in
`dovetail.rules.onnxruntime_recipes`). What is worth building is the rules' business; whether the result is good
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
from dataclasses import replace
from pathlib import Path
from typing import Any

from compiler_svc.backends.base import BuildInput, BuildOutput, OperatorSupport, sample_feeds
from dovetail.contract import Contract, Detail
from dovetail.errors import BuildFailedError, PreconditionError, UnsupportedError, brief
from dovetail.recipe import Recipe

ENGINE = "onnxruntime"
ADAPTER_REVISION = "1"
"""Part of every artifact key: raise it whenever a change here changes the bytes that are built."""

_LAYOUT_DOMAIN = "com.microsoft.nchwc"
_PER_CHANNEL_OPSET = 13  # QuantizeLinear has an axis since opset 13
_FLOAT_OPERATORS = frozenset(
    {"Attention", "EmbedLayerNormalization", "InstanceNormalization", "LayerNormalization", "Sigmoid", "Softmax"}
)
"""Kept in float: they are cheap, and int8 loses their meaning (ONNX Runtime issue 14233, a detector's decode head)."""

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

    settings = _session_options(onnxruntime, threads=1)
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        onnxruntime.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
    except Exception as exc:  # the library raises its own family, which does not share a public base
        return OperatorSupport(False, (_unsupported(str(exc)),))
    return OperatorSupport(True)


def build(order: BuildInput) -> BuildOutput:
    """Build one recipe.

    Raises:
        UnsupportedError: The recipe asks for something that this backend does not know, or names an unknown node.
        PreconditionError: Static quantisation without calibration samples.
        BuildFailedError: The library failed.
    """
    kind = str(order.recipe.options.get("quantization", "none"))
    builders: Mapping[str, Callable[[BuildInput, Path], dict[str, str]]] = {
        "none": _build_float,
        "dynamic": _build_dynamic,
        "static": _build_static,
    }
    if kind not in builders:
        raise UnsupportedError(
            f"recipe {order.recipe.name}: quantization {kind!r} is unknown, expected {', '.join(builders)}"
        )
    path = order.scratch / "model.onnx"
    try:
        labels = builders[kind](order, path)
        contract = _tidy(path, order.contract)
    except (UnsupportedError, PreconditionError, MemoryError, OSError):
        raise
    except Exception as exc:  # the tools raise ValueError, RuntimeError, AttributeError and their own, undocumented
        raise BuildFailedError(f"onnxruntime could not build {order.recipe.name}: {brief(str(exc))}") from exc
    return BuildOutput({"model.onnx": path}, contract, labels)


def _build_float(order: BuildInput, path: Path) -> dict[str, str]:
    """Offline optimisation at BASIC: constant folding and fusions that stay within standard operators."""
    level = str(order.recipe.options.get("optimization_level", "basic"))
    if level not in ("basic", "none"):
        raise UnsupportedError(
            f"recipe {order.recipe.name}: optimization_level {level!r} is bound to a CPU; use 'basic' or 'none'"
        )
    order.report(0.2, f"optimising the graph ({level})")
    if level == "basic" and _optimise_basic(order.model, path, order.threads):
        return {"graph": "optimised offline (basic)"}
    shutil.copyfile(order.model, path)
    return {"graph": "as pushed"}


def _optimise_basic(model: Path, path: Path, threads: int) -> bool:
    """Write the optimised model; False if the library would not, or if the result is not portable."""
    import onnx
    import onnxruntime

    settings = _session_options(onnxruntime, threads=threads)
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    settings.optimized_model_filepath = str(path)
    try:
        onnxruntime.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
        before, after = onnx.load(str(model)), onnx.load(str(path))
    except Exception:  # optimisation is an extra here: without it the plain model is shipped
        return False
    return _domains(after) <= _domains(before)


def _build_dynamic(order: BuildInput, path: Path) -> dict[str, str]:
    from onnxruntime.quantization import quantize_dynamic

    options = order.recipe.options
    prepared = _prepared(order)
    order.report(0.5, "quantising weights")
    quantize_dynamic(
        prepared,
        path,
        per_channel=bool(options.get("per_channel", False)),
        reduce_range=bool(options.get("reduce_range", False)),
        weight_type=_quant_type(options.get("weight_type", "quint8")),
        nodes_to_exclude=_excluded(order.recipe, prepared),
        extra_options={"WeightSymmetric": bool(options.get("weight_symmetric", False))},
    )
    return {"calibration": "uncalibrated"}


def _build_static(order: BuildInput, path: Path) -> dict[str, str]:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, quantize_static

    options = order.recipe.options
    if not order.calibration:
        raise PreconditionError(
            f"recipe {order.recipe.name} needs calibration samples and the model has none; push it with --calibration"
        )
    methods = {"minmax": CalibrationMethod.MinMax, "entropy": CalibrationMethod.Entropy,
               "percentile": CalibrationMethod.Percentile}  # fmt: skip
    formats = {"qdq": QuantFormat.QDQ}
    prepared = _prepared(order)
    reader, count = _calibration_reader(order)
    order.report(0.4, f"calibrating on {count} samples")
    method = str(options.get("calibration_method", "minmax"))
    quantize_static(
        prepared,
        path,
        reader,
        quant_format=_choice(formats, str(options.get("quant_format", "qdq")), "quant_format", order.recipe),
        op_types_to_quantize=_quantised_operators(),
        per_channel=bool(options.get("per_channel", True)),
        reduce_range=bool(options.get("reduce_range", False)),
        activation_type=_quant_type(options.get("activation_type", "quint8")),
        weight_type=_quant_type(options.get("weight_type", "qint8")),
        nodes_to_exclude=_excluded(order.recipe, prepared),
        calibrate_method=_choice(methods, method, "calibration_method", order.recipe),
        calibration_providers=["CPUExecutionProvider"],
        extra_options={
            "ActivationSymmetric": bool(options.get("activation_symmetric", False)),
            "WeightSymmetric": bool(options.get("weight_symmetric", True)),
        },
    )
    return {"calibration": f"{method}, {count} samples"}


def _prepared(order: BuildInput) -> Path:
    """The model made ready for quantisation: shapes inferred, constants folded, opset high enough."""
    import onnx

    model = onnx.load(str(order.model))
    opset = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)
    source = order.scratch / "source.onnx"
    if 0 < opset < _PER_CHANNEL_OPSET:
        model = onnx.version_converter.convert_version(model, _PER_CHANNEL_OPSET)
    _name_nodes(model)
    onnx.save(model, str(source))
    if not order.recipe.options.get("pre_process", True):
        return source
    order.report(0.1, "preparing the graph")
    prepared = order.scratch / "prepared.onnx"
    _pre_process(source, prepared)
    return prepared


def _pre_process(source: Path, prepared: Path) -> None:
    """Run quant_pre_process, giving up one step after the other.

    Where its optimiser fails it only logs and then trips over the missing file, so failures are retried without it.
    Source: onnxruntime 1.31.1, quantization/shape_inference.py.
    """
    from onnxruntime.quantization import quant_pre_process

    retries: tuple[dict[str, bool], ...] = ({}, {"skip_optimization": True}, {"skip_symbolic_shape": True})
    given_up: dict[str, bool] = {}
    for index, retry in enumerate(retries):
        given_up |= retry
        try:
            quant_pre_process(source, prepared, **given_up)
            return
        except MemoryError:
            raise
        except Exception:  # undocumented mix of exceptions; the last one is reported by the caller
            if index == len(retries) - 1:
                raise


def _name_nodes(model: Any) -> None:
    """Give nameless nodes a name: the quantiser addresses nodes by name."""
    taken = {node.name for node in model.graph.node}
    for index, node in enumerate(model.graph.node):
        if not node.name:
            name = f"{node.op_type}_{index}"
            node.name = name if name not in taken else f"{name}_unnamed"


def _excluded(recipe: Recipe, prepared: Path) -> list[str]:
    import onnx

    present = {node.name for node in onnx.load(str(prepared)).graph.node}
    unknown = [name for name in recipe.excluded_nodes if name not in present]
    if unknown:
        raise UnsupportedError(
            f"recipe {recipe.name} excludes nodes that the prepared graph does not have: {unknown[:5]}"
        )
    return list(recipe.excluded_nodes)


def _quantised_operators() -> list[str]:
    """All operators that the library can quantise but those kept in float; sorted, because its own default is not."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return sorted((set(QDQRegistry) | set(QLinearOpsRegistry)) - _FLOAT_OPERATORS)


def _calibration_reader(order: BuildInput) -> tuple[Any, int]:
    """A reader that gives one sample at a time, evenly spaced over the set if it is larger than the subset."""
    from onnxruntime.quantization import CalibrationDataReader

    limit = int(order.recipe.options.get("subset_size", 300))
    feeds = list(sample_feeds(order.calibration or {}, order.inputs, limit=limit))

    class _Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = iter(feeds)

        def get_next(self) -> Any:
            return next(self._feeds, None)

    return _Reader(), len(feeds)


def _quant_type(name: object) -> Any:
    from onnxruntime.quantization import QuantType

    types = {"qint8": QuantType.QInt8, "quint8": QuantType.QUInt8}
    if str(name) not in types:
        raise UnsupportedError(f"quantised type {name!r} is unknown, expected {' or '.join(types)}")
    return types[str(name)]


def _choice(table: Mapping[str, Any], name: str, option: str, recipe: Recipe) -> Any:
    if name not in table:
        raise UnsupportedError(f"recipe {recipe.name}: {option} {name!r} is unknown, expected {', '.join(table)}")
    return table[name]


def _tidy(path: Path, contract: Contract) -> Contract:
    """Drop what only describes the build, check portability, and write what was found into the contract."""
    import onnx

    model = onnx.load(str(path))
    domains = _domains(model)
    if _LAYOUT_DOMAIN in domains:
        raise BuildFailedError(f"the built file holds operators of {_LAYOUT_DOMAIN}, which run on this very CPU only")
    kept = [item for item in model.opset_import if (item.domain if item.domain != "ai.onnx" else "") in domains]
    imports = [(item.domain, item.version) for item in kept]
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in imports)
    for field_name in ("producer_name", "producer_version", "doc_string", "metadata_props"):
        model.ClearField(field_name)
    path.write_bytes(model.SerializeToString(deterministic=True))
    opset = next((version for domain, version in imports if domain in ("", "ai.onnx")), 0)
    found: dict[str, Detail] = {
        "domains": tuple(sorted(domains)),
        "opset": int(opset),
        "ir_version": int(model.ir_version),
    }
    return replace(contract, details={**contract.details, **found})


def _domains(model: Any) -> set[str]:
    from compiler_svc.intake import graph

    return {"" if node.domain == "ai.onnx" else str(node.domain) for node in graph.nodes(model)} | {""}


def _session_options(library: Any, *, threads: int) -> Any:
    settings = library.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4
    return settings


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
