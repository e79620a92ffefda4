# SPDX-License-Identifier: Apache-2.0
"""From the model to the graph that TensorRT parses: precision put into it, as the recipe says.

What lives here: the order of the steps and what a build tells about them. Calibration is `onnxruntime_calibration`'s,
pairs `tensorrt_qdq`'s, casts `tensorrt_autocast`'s and `tensorrt_casts`'. Runs on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compiler_svc.backends import onnxruntime_calibration as calibration
from compiler_svc.backends import onnxruntime_files as files
from compiler_svc.backends import smooth_quant
from compiler_svc.backends.base import BuildInput, spaced
from compiler_svc.backends.onnxruntime_nodes import HEAVY, excluded_in, name_nodes, quantised_names
from compiler_svc.backends.onnxruntime_prepare import Prepared
from compiler_svc.backends.tensorrt_autocast import Choice, choose
from compiler_svc.backends.tensorrt_casts import with_casts
from compiler_svc.backends.tensorrt_graph import (
    feeds_of,
    observed_magnitudes,
    observed_samples,
    prepared_graph,
    write_typed,
)
from compiler_svc.backends.tensorrt_qdq import FP8, INT8, LEAST_OPSET, QuantisedType, with_pairs
from dovetail.errors import PreconditionError, UnsupportedError
from dovetail.recipe import Recipe
from dovetail.rules.tensorrt_recipes import WEIGHTS_FILE

PAIRS_FILE = "pairs.onnx"
"""A quantised graph before casts, left in the scratch directory for who looks into the layers; never shipped."""

_QUANTISED = {"qdq-s8s8": INT8, "qdq-f8e4m3": FP8}
_FLOAT = ("fp32", "fp16", "bf16")
_BF16_OPSET = 22
"""First in which Conv, MatMul and most others take bfloat16. Source: ONNX operator changelog; NVIDIA ModelOpt,
modelopt/onnx/autocast/convert.py, asks for the same."""

_DATA_MAX = 512.0
"""As `tensorrt_recipes` says, for a recipe that does not."""

_METHODS = ("entropy", "percentile", "minmax")
_NAMED = 8  # nodes that a label names


@dataclass(frozen=True, slots=True)
class PreciseGraph:
    """What TensorRT parses.

    Attributes:
        path: The graph, under the name that it has in an artifact whose plan lacks its weights.
        precisions: Heavy node -> the precision of its inputs in the graph: "int8", "fp8", "fp16", "bf16" or "fp32".
        labels: Facts for people.
    """

    path: Path
    precisions: Mapping[str, str]
    labels: Mapping[str, str]


def precise_graph(order: BuildInput, work: Path) -> PreciseGraph:
    """Write the graph of a recipe into the order's scratch directory.

    Raises:
        UnsupportedError: The recipe asks for a precision that is unknown, nothing in the model can have it, or the
            model cannot be brought to the opset that it needs.
        PreconditionError: Calibration samples are needed and there are none.
    """
    import onnx

    kind, floats = _wanted(order.recipe)
    prepared = prepared_graph(order, work, opset=_least_opset(floats, quantised=kind is not None))
    smoothed = _smoothed(order, prepared) if kind is not None else {}
    model = onnx.load(str(prepared.path))
    excluded = excluded_in(model, prepared.source, order.recipe.excluded_nodes, order.recipe).nodes
    magnitudes, labels = _seen(order, prepared, model) if floats != "fp32" else ({}, {})
    quantised: tuple[str, ...] = ()
    if kind is not None:
        model, quantised, told = _with_pairs(order, prepared, model, kind, floats)
        files.write(_copy(model), order.scratch / PAIRS_FILE, external=prepared.external)
        labels |= {**told, **smoothed}
        excluded = ()  # what is not quantised is computed in the float precision
    low: tuple[str, ...] = ()
    if floats != "fp32":
        data_max = float(order.recipe.options.get("data_max", _DATA_MAX))
        choice = choose(model, floats, magnitudes, excluded=excluded, data_max=data_max)
        _check(order.recipe, model, choice, floats, quantised)
        labels["graph"] = _described(choice, floats)
        low = choice.low
        model = with_casts(model, floats, frozenset(low))
    path = order.scratch / WEIGHTS_FILE
    files.write(model, path, external=prepared.external)
    return PreciseGraph(path, _precisions(model, quantised, low, kind.name if kind else "", floats), labels)


def _copy(model: Any) -> Any:
    """Writing weights beside a graph takes them out of it, and it is still needed."""
    copy = type(model)()
    copy.CopyFrom(model)
    return copy


def _wanted(recipe: Recipe) -> tuple[QuantisedType | None, str]:
    """The quantised type, if any, and the float precision of the rest."""
    wanted = str(recipe.options.get("graph_precision", "fp32"))
    kind = _QUANTISED.get(wanted)
    floats = str(recipe.options.get("float_precision", "fp16")) if kind else wanted
    if floats not in _FLOAT:
        known = ", ".join((*_FLOAT, *_QUANTISED))
        raise UnsupportedError(f"recipe {recipe.name}: precision {floats!r} in the graph is unknown, expected {known}")
    return kind, floats


def _smoothed(order: BuildInput, prepared: Prepared) -> dict[str, str]:
    """Move outliers of activations into the weights, if the recipe wants that; says how many it took."""
    import onnx

    alpha = float(order.recipe.options.get("smooth_quant_alpha", 0.0))
    if alpha <= 0 or not order.calibration:
        return {}
    model = onnx.load(str(prepared.path))
    groups = smooth_quant.smooth_groups(model, order.recipe.excluded_nodes)
    limit = int(order.recipe.options.get("subset_size", 500))
    tensors = [group.tensor for group in groups]
    maxima = calibration.channel_maxima(prepared, tensors, lambda: feeds_of(order, limit=limit), threads=order.threads)
    done = smooth_quant.smooth(model, groups, maxima, alpha)
    name_nodes(model)
    write_typed(model, prepared.path, external=prepared.external)
    return {"smooth_quant": f"alpha {alpha:g}, {done} activations"}


def _seen(order: BuildInput, prepared: Prepared, model: Any) -> tuple[Mapping[str, float], dict[str, str]]:
    order.report(0.05, "looking for values beyond the range")
    seen = observed_magnitudes(order, prepared, model)
    return seen.magnitudes, {"cast_ranges": f"{seen.origin}, {seen.samples} samples"}


def _with_pairs(
    order: BuildInput, prepared: Prepared, model: Any, kind: QuantisedType, floats: str
) -> tuple[Any, tuple[str, ...], dict[str, str]]:
    """The graph with pairs, the nodes that have them, and how their ranges were found."""
    import onnx

    quantised = _nodes_to_quantise(model, order.recipe)
    ranges, how = _ranges(order, prepared)
    per_channel = bool(order.recipe.options.get("per_channel", True))
    model = with_pairs(model, quantised, ranges, kind, per_channel=per_channel, float_precision=floats)
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":  # told, so that nothing has to be inferred with all weights in memory
            value = onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)
            model.graph.value_info.append(value)
    return model, quantised, {"calibration": how}


def _check(recipe: Recipe, model: Any, choice: Choice, floats: str, quantised: tuple[str, ...]) -> None:
    """A float recipe that leaves every heavy layer in fp32 would be no artifact of that precision."""
    heavy = {node.name for node in model.graph.node if node.op_type in HEAVY}
    if quantised or not heavy or heavy & set(choice.low):
        return
    why = next((reason for name, reason in choice.kept.items() if name in heavy), "the recipe says so")
    raise UnsupportedError(f"recipe {recipe.name}: no heavy layer can be computed in {floats}: {why}")


def _least_opset(floats: str, *, quantised: bool) -> int:
    least = _BF16_OPSET if floats == "bf16" else 13
    return max(least, LEAST_OPSET) if quantised else least


def _nodes_to_quantise(model: Any, recipe: Recipe) -> tuple[str, ...]:
    names = quantised_names(model, recipe)
    if not names:
        raise UnsupportedError(f"recipe {recipe.name}: the model has no layer with constant weights to quantise")
    return names


def _ranges(order: BuildInput, prepared: Prepared) -> tuple[dict[str, float], str]:
    """Largest magnitude of each activation that is worth representing, and how it was found."""
    recipe = order.recipe
    options = recipe.options
    if not order.calibration:
        raise PreconditionError(
            f"recipe {recipe.name} needs calibration samples and the model has none; push it with --calibration"
        )
    method = str(options.get("calibration_method", "entropy"))
    if method not in _METHODS:
        raise UnsupportedError(
            f"recipe {recipe.name}: calibration_method {method!r} is unknown, expected {', '.join(_METHODS)}"
        )
    limit = int(options.get("subset_size", 500))
    count = len(spaced(len(order.calibration[order.inputs[0].name]), limit))
    order.report(0.15, f"calibrating on {count} samples ({method})")
    if method == "minmax":
        found = _extremes(order, prepared, limit)
    else:
        chosen = calibration.ranges(
            prepared,
            lambda: feeds_of(order, limit=limit),
            sorted(HEAVY),
            method=method,
            percentile=float(options.get("percentile", 99.99)),
            bins=int(options.get("histogram_bins", 1024)),
            threads=order.threads,
        )
        found = {name: float(np.max(np.abs(item.range_value))) for name, item in chosen.items()}
    return found, f"{method}, {count} samples"


def _extremes(order: BuildInput, prepared: Prepared, limit: int) -> dict[str, float]:
    import onnx

    model = onnx.load(str(prepared.path), load_external_data=False)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = {name for node in model.graph.node if node.op_type in HEAVY for name in node.input[:2]}
    found: dict[str, float] = {}
    for sample in observed_samples(order, prepared, sorted(inputs - weights), limit=limit):
        for name, array in sample.items():
            most = float(np.max(np.abs(array), initial=0.0))
            found[name] = max(found.get(name, 0.0), most)
    return found


def _precisions(model: Any, quantised: tuple[str, ...], low: tuple[str, ...], kind: str, floats: str) -> dict[str, str]:
    heavy = [node.name for node in model.graph.node if node.op_type in HEAVY]
    pairs, casts = frozenset(quantised), frozenset(low)
    return {name: kind if name in pairs else floats if name in casts else "fp32" for name in heavy}


def _described(choice: Choice, floats: str) -> str:
    total = len(choice.low) + len(choice.kept)
    named = [f"{name} ({reason})" for name, reason in list(choice.kept.items())[:_NAMED]]
    more = [f"{len(choice.kept) - _NAMED} more"] if len(choice.kept) > _NAMED else []
    rest = f"; fp32: {', '.join([*named, *more])}" if choice.kept else ""
    return f"{floats}: {len(choice.low)} of {total} nodes{rest}"
