# SPDX-License-Identifier: Apache-2.0
"""What activations do on the calibration samples: ranges for static quantisation and maxima by channel.

Samples are run one at a time and reduced at once, so no more than one sample's activations are ever in memory. That is
why entropy and percentile ranges are collected here and only chosen by the library: its own collectors keep the
activations of all samples, their histograms grow with the spread of the data, and its `CalibMaxIntermediateOutputs`
throws away what it should have merged (onnxruntime 1.31.1, quantization/calibrate.py).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compiler_svc.backends import onnxruntime_files as files
from compiler_svc.backends.onnxruntime_prepare import Prepared
from dovetail.errors import BuildFailedError
from dovetail.tensor import Array

Feeds = Callable[[], Iterable[Mapping[str, Array]]]
"""Gives the calibration samples anew, one feed for each, as views."""

_QUANTISED_BINS = 128
"""Levels that the entropy method compares with. Source: EntropyCalibrater's default."""

_VALUES_AT_MOST = 1 << 16
"""Values of one tensor and sample that enter its histogram, evenly spaced; ranges see all of them."""


def observe(prepared: Prepared, tensors: Sequence[str], feeds: Feeds, *, threads: int) -> Iterator[dict[str, Array]]:
    """Run the float model on every sample and give the named float tensors, one sample at a time."""
    import onnxruntime

    settings = files.session_options(onnxruntime, threads=threads)
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    path = _with_outputs(prepared, tensors)
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    inputs = {item.name for item in session.get_inputs()}
    wanted = [name for name in tensors if name not in inputs]
    for feed in feeds():
        found: dict[str, Array] = {name: feed[name] for name in tensors if name in inputs}
        found.update(zip(wanted, session.run(wanted, dict(feed)) if wanted else (), strict=True))
        yield found


def _with_outputs(prepared: Prepared, tensors: Sequence[str]) -> Path:
    import onnx

    model = onnx.load(str(prepared.path))
    known = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    given = {value.name for value in model.graph.output} | {value.name for value in model.graph.input}
    model.graph.output.extend(known[name] for name in tensors if name in known and name not in given)
    path = prepared.work / "observed.onnx"
    files.write(model, path, external=prepared.external)
    return path


def ranges(
    prepared: Prepared,
    feeds: Feeds,
    operators: Sequence[str],
    *,
    method: str,
    percentile: float,
    bins: int,
    threads: int,
) -> Any:
    """Ranges of all tensors that those operators touch, as the library's `TensorsData`.

    Args:
        prepared: The float model.
        feeds: Calibration samples.
        operators: Operator types that will be quantised.
        method: "entropy" or "percentile".
        percentile: Share of the values kept, in percent, both tails together.
        bins: Of the histogram from -m to m, where m is the tensor's largest magnitude.
        threads: For running the model.
    """
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData

    tensors = _calibrated_tensors(prepared, operators)
    extremes = _extremes(observe(prepared, tensors, feeds, threads=threads))
    counts = _histograms(observe(prepared, tensors, feeds, threads=threads), extremes, bins)
    chosen = _chosen(extremes, counts, method, percentile, bins)
    found = {
        name: TensorData(lowest=np.asarray(low, np.float32), highest=np.asarray(high, np.float32))
        for name, (low, high) in chosen.items()
    }
    methods = {"entropy": CalibrationMethod.Entropy, "percentile": CalibrationMethod.Percentile}
    return TensorsData(methods[method], found)


def _calibrated_tensors(prepared: Prepared, operators: Sequence[str]) -> list[str]:
    from onnxruntime.quantization.calibrate import CalibraterBase

    selector = CalibraterBase(prepared.path, list(operators))
    tensors, _ = selector.select_tensors_to_calibrate(selector.model)
    return sorted(tensors)


def _extremes(observed: Iterable[Mapping[str, Array]]) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    for sample in observed:
        for name, array in sample.items():
            if array.size:
                low, high = found.get(name, (np.inf, -np.inf))
                found[name] = (min(low, float(np.min(array))), max(high, float(np.max(array))))
    return found


def _histograms(
    observed: Iterable[Mapping[str, Array]], extremes: Mapping[str, tuple[float, float]], bins: int
) -> dict[str, Array]:
    counts: dict[str, Array] = {name: np.zeros(bins, np.int64) for name in extremes}
    for sample in observed:
        for name, array in sample.items():
            most = _magnitude(extremes.get(name, (0.0, 0.0)))
            if 0 < most < np.inf:
                values = array.reshape(-1)[:: max(1, array.size // _VALUES_AT_MOST) | 1]
                counts[name] += np.histogram(values, bins, range=(-most, most))[0]
    return counts


def _chosen(
    extremes: Mapping[str, tuple[float, float]], counts: Mapping[str, Array], method: str, percentile: float, bins: int
) -> dict[str, tuple[float, float]]:
    """Let the library choose from our histograms; constant tensors keep their extremes."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(method, False, bins, _QUANTISED_BINS, percentile, "same")
    for name, (low, high) in extremes.items():
        most = _magnitude((low, high))
        if counts[name].any():
            edges = np.linspace(-most, most, bins + 1, dtype=np.float32)
            limits = (np.float32(low), np.float32(high), np.float32(most))
            collector.histogram_dict[name] = (counts[name], edges, *limits)
    if not collector.histogram_dict:
        raise BuildFailedError("calibration saw no finite activations that vary, so there are no ranges to choose")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        result = collector.compute_collection_result()
    return {**extremes, **{name: (float(values[0]), float(values[1])) for name, values in result.items()}}


def _magnitude(limits: tuple[float, float]) -> float:
    return max(abs(limits[0]), abs(limits[1]))


def channel_maxima(prepared: Prepared, tensors: Sequence[str], feeds: Feeds, *, threads: int) -> dict[str, Array]:
    """Largest magnitude of each channel (last axis) of the named tensors over all samples, float32."""
    found: dict[str, Array] = {}
    for sample in observe(prepared, tensors, feeds, threads=threads):
        for name, array in sample.items():
            if array.size:
                most = np.abs(array.reshape(-1, array.shape[-1])).max(axis=0)
                found[name] = np.maximum(found[name], most) if name in found else most
    return found
