# SPDX-License-Identifier: Apache-2.0
"""Makes the layer report of a built artifact, and ranks its layers by what each costs in accuracy.

Never fails a build: what could not be found out is a note in the report. What a report says is `dovetail.layers`'
business, how an engine's artifact is opened the probes'.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from compiler_svc.worker.layers import all_probes, onnxruntime_layers, tracing
from compiler_svc.worker.layers.base import LayerProbe, ProbeOrder
from compiler_svc.worker.layers.source_graph import tensors_of_layers
from dovetail.errors import brief
from dovetail.layers import Layer, LayerReport, TensorError, expected_db
from dovetail.recipe import Recipe

SAMPLES = 4
"""Samples behind a report: the figures are sums over all elements of a tensor, which few samples already settle."""

TRACE_BUDGET_S = 30.0
MAX_LAYERS_ALONE = 256
"""With more layers the ranking takes their tensors' errors: each layer alone costs SAMPLES inferences."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ranking:
    """Layers, most sensitive first.

    Attributes:
        layers: With the figure that ranked them; empty if nothing could be found out.
        ranked_by: As in `LayerReport`.
        notes: Why it is not "alone".
    """

    layers: tuple[Layer, ...]
    ranked_by: str = ""
    notes: tuple[str, ...] = ()


def describe(order: ProbeOrder, recipe: Recipe, layers: Sequence[str], kept: Mapping[str, str]) -> LayerReport:
    """Compare the artifact with the reference, tensor by tensor.

    Args:
        order: The artifact and a few inputs.
        recipe: As built.
        layers: All nodes that the recipe could quantise.
        kept: Those that stayed in float -> why.
    """
    listed = tuple(Layer(name, kept=kept.get(name, "")) for name in layers)
    report = LayerReport(recipe.name, recipe.engine, recipe.precision, layers=listed)
    probe = all_probes().get(recipe.engine)
    if probe is None:
        return replace(report, notes=(f"nothing here can look into artifacts of {recipe.engine}",))
    try:
        trace = _trace(order, probe, layers)
    except Exception as exc:  # DovetailError, or what onnx and the engine's library raise on a graph they dislike
        _log.warning("layers.not_compared recipe=%s why=%r", recipe.name, brief(str(exc)))
        return replace(report, notes=(f"the tensors could not be compared: {brief(str(exc))}",))
    rows = tuple(row if row.quantised else replace(row, why=_why_float(row, layers, kept)) for row in trace.rows)
    return replace(report, samples=trace.samples, tensors=rows, notes=trace.notes)


def rank(order: ProbeOrder, report: LayerReport) -> Ranking:
    """Order the layers that are quantised by what each costs: alone if that can be measured, else by their tensors.

    Deterministic for equal inputs unless the time runs out. Ties stay in graph order.
    """
    names = [layer.node for layer in report.layers if not layer.kept]
    probe = all_probes().get(report.engine)
    if probe is None or not names:
        return Ranking((), notes=("there is no layer to rank",))
    if len(names) > MAX_LAYERS_ALONE:
        why = f"the layers are ranked by their tensors: {len(names)} are too many to try each alone"
        return _by_tensor(report, names, why)
    try:
        figures = _alone(order, probe, names)
    except Exception as exc:  # as above: graph surgery on a stranger's model
        _log.info("layers.not_alone recipe=%s why=%r", report.recipe, brief(str(exc)))
        return _by_tensor(report, names, f"the layers are ranked by their tensors: {brief(str(exc))}")
    ordered = sorted(figures, key=lambda name: (figures[name], names.index(name)))
    return Ranking(tuple(Layer(name, figures[name]) for name in ordered), "alone")


def with_ranking(report: LayerReport, ranking: Ranking) -> LayerReport:
    """The report with its layers in the ranking's order; layers that were not ranked come last."""
    figures = {layer.node: layer.snr_db for layer in ranking.layers}
    position = {name: index for index, name in enumerate(figures)}
    layers = sorted(report.layers, key=lambda layer: position.get(layer.node, len(position)))
    ranked = tuple(replace(layer, snr_db=figures.get(layer.node)) for layer in layers)
    return replace(report, layers=ranked, ranked_by=ranking.ranked_by, notes=(*report.notes, *ranking.notes))


def _trace(order: ProbeOrder, probe: LayerProbe, layers: Sequence[str]) -> tracing.Trace:
    reference = onnxruntime_layers.open_reference(order)
    return tracing.trace(order, probe.open_view(order), reference, frozenset(layers))


def _alone(order: ProbeOrder, probe: LayerProbe, names: Sequence[str]) -> Mapping[str, float]:
    reference, view = onnxruntime_layers.open_reference(order), probe.open_view(order)
    tensors = tensors_of_layers(tracing.shared_places(order, view, reference, frozenset(names)))
    return probe.alone(order, {name: tensors[name] for name in names if name in tensors})


def _by_tensor(report: LayerReport, names: Sequence[str], note: str) -> Ranking:
    """Rank by how much a layer's tensor is worse than its worst input, as in `LayerReport.first_jump`."""
    ceiling = expected_db(report.precision)
    known = {row.tensor: row.snr_db for row in report.tensors}
    losses = {
        row.node: row.snr_db - min([ceiling, *(known[name] for name in row.inputs if name in known)])
        for row in reversed(report.tensors)
    }
    figures = {row.node: row.snr_db for row in reversed(report.tensors)}
    ordered = sorted((name for name in names if name in losses), key=lambda name: (losses[name], names.index(name)))
    return Ranking(tuple(Layer(name, figures[name]) for name in ordered), "tensor" if ordered else "", (note,))


def _why_float(row: TensorError, layers: Sequence[str], kept: Mapping[str, str]) -> str:
    if row.node in kept:
        return kept[row.node]
    if row.node in layers:
        return "the build left it in float"
    return f"{row.op_type} is not quantised between these layers"
