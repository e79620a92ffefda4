# SPDX-License-Identifier: Apache-2.0
"""Runs reference and artifact side by side with their inner tensors exposed, and compares tensor by tensor.

The reference is the source model on ONNX Runtime, fp32, not optimised, as the gate's. Exposing a tensor can undo a
fusion that the engine would make, so the figures explain an artifact; whether it is good enough is the gate's to say.

Memory is bounded: tensors are exposed in groups of at most GROUP_BYTES, one sample at a time, and a tensor over that
limit is left out. So a sample costs one run of both for each group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler_svc.worker.layers.base import ArtifactView, Feeds, ProbeOrder
from compiler_svc.worker.layers.error_sum import ErrorSum
from compiler_svc.worker.layers.source_graph import Place, places, read_nodes
from dovetail.layers import TensorError

GROUP_BYTES = 256 << 20
GROUP_TENSORS = 64
_UNKNOWN_BYTES = 4 << 20  # counted for a tensor whose shape cannot be inferred
_FLOATS = frozenset({"FP16", "FP32", "FP64"})
_FLOAT_TYPES = frozenset({0, 1, 10, 11})  # TensorProto's UNDEFINED (not inferred), FLOAT, FLOAT16 and DOUBLE


@dataclass(frozen=True, slots=True)
class Trace:
    """The outcome.

    Attributes:
        places: Shared tensors in the source's order.
        rows: Their figures; those that are not float or were left out are missing.
        samples: Samples that all rows hold.
        notes: What was left out.
    """

    places: tuple[Place, ...]
    rows: tuple[TensorError, ...]
    samples: int
    notes: tuple[str, ...]


def trace(order: ProbeOrder, view: ArtifactView, reference: ArtifactView, layers: frozenset[str]) -> Trace:
    """Compare all tensors that both have.

    Args:
        order: Inputs and time.
        view: The artifact.
        reference: The source model.
        layers: Names of the nodes that count as layers.

    Raises:
        EngineError: A changed graph does not load or run.
    """
    sizes, _ = tensor_bytes(order.model, order.feeds[0])
    found = shared_places(order, view, reference, layers)
    shared = frozenset(place.tensor for place in found)
    sums: dict[str, ErrorSum] = {}
    notes: list[str] = []
    huge = [place.tensor for place in found if sizes.get(place.tensor, 0) > GROUP_BYTES]
    if huge:
        notes.append(f"{len(huge)} tensors of over {GROUP_BYTES >> 20} MiB are left out: {', '.join(huge[:3])}")
    wanted = [place.tensor for place in found if place.tensor not in huge]
    for group in _groups(wanted, sizes):
        if order.expired():
            notes.append(f"the time was over after {len(sums)} of {len(wanted)} tensors")
            break
        sums.update(_compare(order.feeds, view, reference, group))
    rows = tuple(_row(place, sums[place.tensor], view, shared) for place in found if place.tensor in sums)
    return Trace(found, rows, len(order.feeds), tuple(notes))


def shared_places(
    order: ProbeOrder, view: ArtifactView, reference: ArtifactView, layers: frozenset[str]
) -> tuple[Place, ...]:
    """Where the tensors that both have, and that are floats as far as is known, stand in the source graph."""
    nodes = read_nodes(order.model)
    _, others = tensor_bytes(order.model, order.feeds[0])
    written = {name for node in nodes for name in node.outputs}
    return places(nodes, (view.tensors & reference.tensors & written) - others, layers)


def tensor_bytes(model: Path, feed: Feeds) -> tuple[dict[str, int], frozenset[str]]:
    """Sizes of the float tensors for these inputs and names of those that are none, as far as both are inferred."""
    import onnx

    graph = onnx.load(str(model), load_external_data=False)
    for value in graph.graph.input:
        if value.name in feed:
            for dim, size in zip(value.type.tensor_type.shape.dim, feed[value.name].shape, strict=False):
                dim.dim_value = size
    del graph.graph.value_info[:]  # else shapes that were inferred with free dimensions stay
    try:
        inferred = onnx.shape_inference.infer_shapes(graph, data_prop=True)
    except Exception:  # the library raises its own family; without shapes the default size is counted
        return {}, frozenset()
    values = (*inferred.graph.value_info, *inferred.graph.output)
    others = frozenset(value.name for value in values if value.type.tensor_type.elem_type not in _FLOAT_TYPES)
    return {value.name: _bytes(value) for value in values if value.name not in others}, others


def _bytes(value: Any) -> int:
    total = 4
    if not value.type.tensor_type.HasField("shape"):
        return _UNKNOWN_BYTES
    for dim in value.type.tensor_type.shape.dim:
        if not dim.HasField("dim_value"):
            return _UNKNOWN_BYTES
        total *= max(int(dim.dim_value), 0)
    return total


def _groups(tensors: Sequence[str], sizes: Mapping[str, int]) -> Iterator[list[str]]:
    group: list[str] = []
    filled = 0
    for name in tensors:
        size = sizes.get(name, _UNKNOWN_BYTES)
        if group and (filled + size > GROUP_BYTES or len(group) == GROUP_TENSORS):
            yield group
            group, filled = [], 0
        group.append(name)
        filled += size
    if group:
        yield group


def _compare(
    feeds: Sequence[Feeds], view: ArtifactView, reference: ArtifactView, group: Sequence[str]
) -> dict[str, ErrorSum]:
    expected_session = reference.expose(group)
    try:
        types = {spec.name: spec.datatype for spec in expected_session.outputs}
        floats = [name for name in group if types.get(name) in _FLOATS]
        if not floats:
            return {}
        actual_session = view.expose(floats)
        try:
            sums = {name: ErrorSum() for name in floats}
            for feed in feeds:
                expected, actual = expected_session.run(feed), actual_session.run(feed)
                for name, total in sums.items():
                    total.add(expected[name], actual[name])
            return sums
        finally:
            actual_session.close()
    finally:
        expected_session.close()


def _row(place: Place, total: ErrorSum, view: ArtifactView, shared: frozenset[str]) -> TensorError:
    return TensorError(
        tensor=place.tensor,
        node=place.node.name,
        op_type=place.node.op_type,
        snr_db=total.snr_db,
        cosine=total.cosine,
        max_error=total.max_error,
        quantised=view.quantised(place.tensor, shared - {place.tensor}),
        weight_share=place.weight_share,
        inputs=place.inputs,
    )
