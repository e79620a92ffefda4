# SPDX-License-Identifier: Apache-2.0
"""Builds int8 by ONNX Runtime's tools: dynamic, and static as QDQ, led by the recipe's options.

Defaults that are a choice (rule R14), all of them options of the recipe:

* `float_operators`: softmax, sigmoid and the normalisations are cheap, and int8 loses their meaning.
* `quantised_operators`: "all" that the library knows for convolutional nets; products and convolutions only for
  transformers, whose masks and residual sums have ranges that eight bits do not hold.
* `float_outputs`, `constant_weights_only`: in a transformer the results of products stay in float, and products of two
  activations too; both cost more accuracy than they save time.
* `smooth_quant_alpha`: on for transformers, whose outliers sit in few channels (`smooth_quant`).
* `keep_tail`: what lies behind the last heavy node (a detector's decoding of boxes, a final softmax) stays in float;
  so does a convolution fed by a softmax, as detectors have to average a distribution. Static quantisation of such a
  head gives no detections at all (ONNX Runtime issues 14233 and 10787).
* `keep_first`, `keep_last`: off. The first and last layer cost accuracy in some nets and speed in all, so the gate
  and the search for layers that stay in float decide, model by model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compiler_svc.backends import onnxruntime_calibration as calibration
from compiler_svc.backends import onnxruntime_files as files
from compiler_svc.backends import onnxruntime_nodes as graph_nodes
from compiler_svc.backends import smooth_quant
from compiler_svc.backends.base import BuildInput, sample_feeds, spaced
from compiler_svc.backends.onnxruntime_prepare import Prepared, prepare
from dovetail.errors import BuildFailedError, PreconditionError, UnsupportedError
from dovetail.recipe import Recipe

_HISTOGRAM_METHODS = ("entropy", "percentile")


def build_dynamic(order: BuildInput, path: Path, work: Path) -> dict[str, str]:
    """Weights in eight bits, activations quantised with each call."""
    from onnxruntime.quantization import quantize_dynamic

    options = order.recipe.options
    prepared = prepare(order, work)
    excluded = _exclusions(order.recipe, prepared)
    order.report(0.5, "quantising weights")
    quantize_dynamic(
        prepared.path,
        work / "quantised.onnx",
        per_channel=bool(options.get("per_channel", False)),
        reduce_range=bool(options.get("reduce_range", False)),
        weight_type=_quant_type(options.get("weight_type", "quint8")),
        nodes_to_exclude=[*excluded.nodes, *(f"{name}_MatMul" for name in excluded.nodes)],  # what becomes of a Gemm
        use_external_data_format=prepared.external,
        extra_options={"WeightSymmetric": bool(options.get("weight_symmetric", False))},
    )
    _ship(work / "quantised.onnx", path, external=prepared.external)
    return {"calibration": "uncalibrated", **excluded_label(excluded)}


def build_static(order: BuildInput, path: Path, work: Path) -> dict[str, str]:
    """Weights and activations in eight bits, with ranges from the calibration samples.

    Raises:
        PreconditionError: There are no calibration samples.
    """
    recipe = order.recipe
    if not order.calibration:
        raise PreconditionError(
            f"recipe {recipe.name} needs calibration samples and the model has none; push it with --calibration"
        )
    method = str(recipe.options.get("calibration_method", "minmax"))
    _check(recipe, method)
    prepared = prepare(order, work)
    excluded = _exclusions(recipe, prepared)
    float_nodes = [*excluded.nodes, *_default_float(prepared.graph(), recipe)]
    count = _sample_count(order)
    order.report(0.2, f"calibrating on {count} samples")
    smoothed = _smooth(order, prepared, float_nodes)
    order.report(0.4, f"calibrating on {count} samples ({method})")
    _quantise_static(order, prepared, float_nodes, method, work / "quantised.onnx")
    _ship(work / "quantised.onnx", path, external=prepared.external)
    return {"calibration": f"{method}, {count} samples", **smoothed, **excluded_label(excluded)}


def excluded_label(excluded: graph_nodes.Exclusions) -> dict[str, str]:
    """What became of the excluded nodes, where that is not plain."""
    if not excluded.absorbed:
        return {}
    return {"excluded_absorbed": ", ".join(excluded.absorbed[:20])}


def _quantise_static(order: BuildInput, prepared: Prepared, excluded: Sequence[str], method: str, path: Path) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, quantize_static

    options = order.recipe.options
    methods = {"minmax": CalibrationMethod.MinMax, "entropy": CalibrationMethod.Entropy,
               "percentile": CalibrationMethod.Percentile}  # fmt: skip
    operators = _quantised_operators(order.recipe)
    cached = _ranges(order, prepared, operators, method) if method in _HISTOGRAM_METHODS else None
    quantize_static(
        prepared.path,
        path,
        None if cached else _reader(order),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=operators,
        per_channel=bool(options.get("per_channel", True)),
        reduce_range=bool(options.get("reduce_range", False)),
        activation_type=_quant_type(options.get("activation_type", "quint8")),
        weight_type=_quant_type(options.get("weight_type", "qint8")),
        nodes_to_exclude=list(excluded),
        use_external_data_format=prepared.external,
        calibrate_method=methods[method],
        calibration_providers=["CPUExecutionProvider"],
        calibration_cache_path=cached,
        extra_options={
            "ActivationSymmetric": bool(options.get("activation_symmetric", False)),
            "WeightSymmetric": bool(options.get("weight_symmetric", True)),
            "OpTypesToExcludeOutputQuantization": sorted(_words(options.get("float_outputs", ""))),
        },
    )


def _ranges(order: BuildInput, prepared: Prepared, operators: Sequence[str], method: str) -> Path:
    """Ranges by histogram, as the cache file that quantize_static reads instead of calibrating."""
    from onnxruntime.quantization.calibrate import save_tensors_data

    options = order.recipe.options
    found = calibration.ranges(
        prepared,
        lambda: _feeds(order),
        operators,
        method=method,
        percentile=float(options.get("percentile", 99.99)),
        bins=int(options.get("histogram_bins", 1024)),
        threads=order.threads,
    )
    path = prepared.work / "ranges.json"
    save_tensors_data(found, path)
    return path


def _smooth(order: BuildInput, prepared: Prepared, excluded: Sequence[str]) -> dict[str, str]:
    """Rewrite the prepared model if the recipe wants SmoothQuant.

    Raises:
        UnsupportedError: Nothing in the graph can be smoothed.
    """
    import onnx

    alpha = float(order.recipe.options.get("smooth_quant_alpha", 0.0))
    if alpha <= 0:
        return {}
    groups = smooth_quant.smooth_groups(prepared.graph(), excluded)
    maxima = calibration.channel_maxima(
        prepared, [group.tensor for group in groups], lambda: _feeds(order), threads=order.threads
    )
    model = onnx.load(str(prepared.path))
    done = smooth_quant.smooth(model, groups, maxima, alpha)
    if not done:
        raise UnsupportedError(f"recipe {order.recipe.name}: no matrix product with a constant weight to smooth")
    files.write(model, prepared.path, external=prepared.external)
    return {"smooth_quant": f"alpha {alpha:g}, {done} activations"}


def _exclusions(recipe: Recipe, prepared: Prepared) -> graph_nodes.Exclusions:
    names = (*recipe.excluded_nodes, *graph_nodes.kept_by_default(prepared.source, recipe))
    return graph_nodes.excluded_in(prepared.graph(), prepared.source, names, recipe)


def _default_float(prepared: Any, recipe: Recipe) -> list[str]:
    """Nodes that stay in float by the recipe's defaults.

    Products of two activations are left out here: the library's MatMulConstBOnly does nothing in QDQ form
    (onnxruntime 1.31.1, quantization/operators/matmul.py).
    """
    found = graph_nodes.tail_nodes(prepared) if recipe.options.get("keep_tail", False) else set()
    if recipe.options.get("constant_weights_only", False):
        found |= graph_nodes.variable_products(prepared)
    return sorted(found)


def _quantised_operators(recipe: Recipe) -> list[str]:
    """Sorted, because the library's own default is not."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    known = set(QDQRegistry) | set(QLinearOpsRegistry)
    wanted = _words(recipe.options.get("quantised_operators", "all"))
    if unknown := wanted - known - {"all"}:
        raise UnsupportedError(f"recipe {recipe.name}: onnxruntime cannot quantise {', '.join(sorted(unknown))}")
    chosen = known if "all" in wanted else wanted
    return sorted(chosen - _words(recipe.options.get("float_operators", "")))


def _words(value: object) -> set[str]:
    return {word.strip() for word in str(value).split(",") if word.strip()}


def _check(recipe: Recipe, method: str) -> None:
    for option, value, allowed in (
        ("calibration_method", method, ("minmax", *_HISTOGRAM_METHODS)),
        ("quant_format", str(recipe.options.get("quant_format", "qdq")), ("qdq",)),
    ):
        if value not in allowed:
            raise UnsupportedError(
                f"recipe {recipe.name}: {option} {value!r} is unknown, expected {', '.join(allowed)}"
            )


def _sample_count(order: BuildInput) -> int:
    samples = order.calibration or {}
    count = len(samples[order.inputs[0].name])
    return len(spaced(count, int(order.recipe.options.get("subset_size", 300))))


def _feeds(order: BuildInput) -> Any:
    """One sample at a time as views, evenly spaced over the set if it is larger than the subset."""
    limit = int(order.recipe.options.get("subset_size", 300))
    return sample_feeds(order.calibration or {}, order.inputs, limit=limit)


def _reader(order: BuildInput) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class _Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = iter(_feeds(order))

        def get_next(self) -> Any:
            return next(self._feeds, None)

    return _Reader()


def _quant_type(name: object) -> Any:
    from onnxruntime.quantization import QuantType

    types: Mapping[str, Any] = {"qint8": QuantType.QInt8, "quint8": QuantType.QUInt8}
    if str(name) not in types:
        raise UnsupportedError(f"quantised type {name!r} is unknown, expected {' or '.join(types)}")
    return types[str(name)]


def _ship(quantised: Path, path: Path, *, external: bool) -> None:
    """Move the result to where it is published, its weights under the name that the manifest has."""
    import onnx

    if not quantised.exists():
        raise BuildFailedError("onnxruntime's quantiser wrote no file")
    if external:
        files.write(onnx.load(str(quantised)), path, external=True)
    else:
        quantised.replace(path)
