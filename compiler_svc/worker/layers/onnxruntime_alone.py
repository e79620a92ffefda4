# SPDX-License-Identifier: Apache-2.0
"""Each quantised layer of an ONNX artifact alone, without building one artifact per layer.

One graph holds the source model and, for each layer, that layer as the artifact computes it, in a branch of an If that
a Boolean input switches. The branch reads the float graph's tensors; weights, scales and zero points are the
artifact's; what the artifact does to the layer's result before others read it is part of the layer. So a layer costs
one run per sample, and the graph is loaded once, not optimised: integers are computed as their operators say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compiler_svc.worker.layers.base import Feeds, ProbeOrder
from compiler_svc.worker.layers.error_sum import ErrorSum
from compiler_svc.worker.layers.onnxruntime_view import ENGINE, OnnxView, is_quantising
from dovetail.engines import Session, SessionOptions, create_engine
from dovetail.errors import DovetailError, UnsupportedError, brief
from dovetail.layers import LIMIT_DB
from dovetail.tensor import Array

_SWITCH = "dovetail_switch__"
_FLOAT = "dovetail_float__"
_BUILT = "dovetail_built__"


def alone(order: ProbeOrder, tensors: Mapping[str, str]) -> Mapping[str, float]:
    """See `LayerProbe.alone`."""
    by_tensor = {tensor: index for index, tensor in enumerate(dict.fromkeys(tensors.values()))}
    try:
        session, switched = _open(order, by_tensor)
    except DovetailError:
        raise
    except Exception as exc:  # graph surgery calls onnx, which raises its own family and protobuf's
        raise UnsupportedError(f"the layers cannot be taken apart: {brief(str(exc))}") from exc
    try:
        figures = _measure(order, session, by_tensor, switched)
    finally:
        session.close()
    return {layer: figures.get(tensor, LIMIT_DB) for layer, tensor in tensors.items()}


def _measure(
    order: ProbeOrder, session: Session, by_tensor: Mapping[str, int], switched: Sequence[str]
) -> dict[str, float]:
    off = {_SWITCH + str(by_tensor[tensor]): _scalar(False) for tensor in switched}
    outputs = [spec.name for spec in session.outputs if spec.datatype in ("FP16", "FP32", "FP64")]
    if not outputs:
        raise UnsupportedError("the model has no float output to compare")
    expected = [_floats(session, {**feed, **off}, outputs) for feed in order.feeds]
    figures: dict[str, float] = {}
    for tensor in switched:
        if order.expired():
            raise UnsupportedError(f"the time was over after {len(figures)} of {len(switched)} layers")
        on = {**off, _SWITCH + str(by_tensor[tensor]): _scalar(True)}
        sums = [ErrorSum() for _ in outputs]
        for feed, reference in zip(order.feeds, expected, strict=True):
            for total, left, right in zip(sums, reference, _floats(session, {**feed, **on}, outputs), strict=True):
                total.add(left, right)
        figures[tensor] = min(total.snr_db for total in sums)
    return figures


def _scalar(value: bool) -> Array:
    return np.asarray(value)


def _floats(session: Session, feeds: Feeds, outputs: Sequence[str]) -> list[Array]:
    results = session.run(feeds)
    return [results[name] for name in outputs]


def _open(order: ProbeOrder, by_tensor: Mapping[str, int]) -> tuple[Session, list[str]]:
    """The graph with switches, loaded, and the tensors that have one: those that the artifact quantises."""
    import onnx

    source = onnx.load(str(order.model))
    path = next(path for name, path in sorted(order.files.items()) if name.endswith(".onnx"))
    built = OnnxView(path, order.options)
    artifact = onnx.load(str(path))
    source = _same_opset(source, artifact)
    known = frozenset(name for node in source.graph.node for name in node.output)
    known |= frozenset(value.name for value in source.graph.input)
    producers = {name: node for node in source.graph.node for name in node.output}
    weights = frozenset(item.name for item in artifact.graph.initializer)
    switched: list[str] = []
    used: set[str] = set()
    for tensor, index in by_tensor.items():
        branch = _branch(built, tensor, known - {tensor})
        if branch and tensor in producers:
            _switch(source, producers[tensor], tensor, _SWITCH + str(index), _renamed(branch, str(index), weights))
            switched.append(tensor)
            used.update(name for node in branch for name in node.input if name in weights)
    for item in artifact.graph.initializer:
        if item.name in used:
            copy = source.graph.initializer.add()
            copy.CopyFrom(item)
            copy.name = _BUILT + item.name
    return _load(order, source), switched


def _branch(built: OnnxView, tensor: str, known: frozenset[str]) -> list[Any]:
    """The artifact's nodes that give a tensor, in order, and what its readers see of it; [] if none is quantised."""
    cone = list(built.cone(tensor, known))
    readers = built.seen_by_readers(tensor)
    if not any(is_quantising(node) for node in cone):
        return []
    return [*reversed(_ordered(cone)), *readers]


def _ordered(cone: list[Any]) -> list[Any]:
    """Readers before what they read: a stable order for a graph that was walked backwards."""
    position = {name: index for index, node in enumerate(cone) for name in node.output}
    depth: dict[int, int] = {}
    for _ in cone:  # as many rounds as the longest path; cones are a handful of nodes
        changed = False
        for index, node in enumerate(cone):
            for name in node.input:
                other = position.get(name)
                if other is not None and depth.get(other, 0) <= depth.get(index, 0):
                    depth[other] = depth.get(index, 0) + 1
                    changed = True
        if not changed:
            break
    return [cone[index] for index in sorted(range(len(cone)), key=lambda index: depth.get(index, 0))]


def _switch(source: Any, producer: Any, tensor: str, switch: str, branch: Sequence[Any]) -> None:
    """Let a tensor be the artifact's where the switch is on, else the float graph's."""
    from onnx import TensorProto, ValueInfoProto, helper

    position = next(index for index, node in enumerate(source.graph.node) if node is producer)
    producer.output[list(producer.output).index(tensor)] = _FLOAT + tensor
    copy = helper.make_node("Identity", [_FLOAT + tensor], [f"{switch}_float"])
    then = helper.make_graph(list(branch), f"{switch}_on", [], [ValueInfoProto(name=branch[-1].output[0])])
    otherwise = helper.make_graph([copy], f"{switch}_off", [], [ValueInfoProto(name=f"{switch}_float")])
    node = helper.make_node("If", [switch], [tensor], name=switch, then_branch=then, else_branch=otherwise)
    source.graph.node.insert(position + 1, node)
    source.graph.input.append(helper.make_tensor_value_info(switch, TensorProto.BOOL, []))


def _renamed(branch: Sequence[Any], mark: str, weights: frozenset[str]) -> list[Any]:
    """Copies of the branch's nodes: what they write gets names of its own, the artifact's weights theirs."""
    names = {name: f"{_BUILT}{mark}_{name}" for node in branch for name in node.output if name}
    names |= {name: _BUILT + name for name in weights}
    copies = []
    for node in branch:
        copy = type(node)()
        copy.CopyFrom(node)
        copy.name = f"{_BUILT}{mark}_{node.name}"
        for tensors in (copy.input, copy.output):
            tensors[:] = [names.get(name, name) for name in tensors]
        copies.append(copy)
    return copies


def _same_opset(source: Any, artifact: Any) -> Any:
    """The source in the artifact's opset, with the artifact's operator domains."""
    import onnx

    there = {item.domain.replace("ai.onnx", ""): item.version for item in artifact.opset_import}
    here = {item.domain.replace("ai.onnx", ""): item.version for item in source.opset_import}
    if here.get("", 0) < there.get("", 0):
        source = onnx.version_converter.convert_version(source, there[""])
    for domain, version in there.items():
        if domain not in here:
            source.opset_import.append(onnx.helper.make_opsetid(domain, version))
    source.ir_version = max(source.ir_version, artifact.ir_version)
    return source


def _load(order: ProbeOrder, source: Any) -> Session:
    path = order.scratch / "layers-alone.onnx"
    try:
        path.write_bytes(source.SerializeToString())
        return create_engine(ENGINE).load({"model.onnx": path}, SessionOptions(threads=1, optimize=False))
    finally:
        path.unlink(missing_ok=True)
