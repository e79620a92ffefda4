# SPDX-License-Identifier: Apache-2.0
"""Reads the graph that a TensorRT build starts from, and what its tensors hold on samples.

What lives here: names, types, opset and observed magnitudes; which node is computed in which type is the business of
`tensorrt_autocast` and `tensorrt_qdq`. Pure ONNX and ONNX Runtime on the CPU: nothing here needs TensorRT or a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compiler_svc.backends import onnxruntime_calibration as calibration
from compiler_svc.backends import onnxruntime_files as files
from compiler_svc.backends.base import BuildInput, sample_feeds
from compiler_svc.backends.onnxruntime_nodes import name_nodes
from compiler_svc.backends.onnxruntime_prepare import Prepared
from compiler_svc.intake.synthetic import synthetic_feeds
from dovetail.errors import UnsupportedError, brief
from dovetail.tensor import Array

SYNTHETIC_SAMPLES = 4
"""Made up inputs that stand in where there are no calibration samples; a choice."""

OBSERVED_SAMPLES = 32
"""Calibration samples whose magnitudes are looked at for casts: a maximum settles quickly; a choice."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What the tensors of the fp32 graph hold.

    Attributes:
        magnitudes: Tensor -> largest absolute value seen; infinite if one was not finite.
        origin: "calibration" or "synthetic".
        samples: How many were run.
    """

    magnitudes: Mapping[str, float]
    origin: str
    samples: int


def prepared_graph(order: BuildInput, work: Path, *, opset: int) -> Prepared:
    """The model with named nodes, typed tensors and constants as initializers, in that opset or a newer one.

    Args:
        order: The build.
        work: Directory for intermediate files.
        opset: Least opset of ai.onnx; quantisation to and from fp16 begins at 19, most of bf16 at 22.

    Raises:
        UnsupportedError: The model cannot be brought to that opset.
    """
    import onnx

    external = files.is_external(order.model)
    model = onnx.load(str(order.model))
    name_nodes(model)
    source = onnx.load(str(order.model), load_external_data=False)
    name_nodes(source)
    present = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)
    if present < opset:
        try:
            model = onnx.version_converter.convert_version(model, opset)
        except Exception as exc:  # the converter raises RuntimeError and its own, undocumented
            raise UnsupportedError(
                f"recipe {order.recipe.name}: the model is of opset {present} and cannot be brought to {opset}: "
                f"{brief(str(exc))}"
            ) from exc
        name_nodes(model)
    constants_to_initializers(model)
    path = work / "typed.onnx"
    write_typed(model, path, external=external)
    return Prepared(path, source, external, work)


def write_typed(model: Any, path: Path, *, external: bool) -> None:
    """Write a graph with the types of its tensors; weights over 2 GiB do not fit the message that inference takes."""
    import onnx

    files.write(model, path, external=external)
    bare = onnx.load(str(path), load_external_data=False)
    path.write_bytes(onnx.shape_inference.infer_shapes(bare).SerializeToString(deterministic=True))


def constants_to_initializers(model: Any) -> None:
    """Replace Constant nodes of the main graph by initializers, so that weights are found in one place. In place."""
    import onnx

    graph = model.graph
    kept = []
    for node in graph.node:
        value = next((item.t for item in node.attribute if item.name == "value"), None)
        if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or value is None:
            kept.append(node)
            continue
        tensor = onnx.TensorProto()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
    del graph.node[:]
    graph.node.extend(kept)


def tensor_types(model: Any) -> dict[str, int]:
    """Tensor of the main graph -> ONNX element type, as far as it is known."""
    graph = model.graph
    found = {tensor.name: int(tensor.data_type) for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.HasField("tensor_type"):
            found.setdefault(value.name, int(value.type.tensor_type.elem_type))
    return found


def float_activations(model: Any) -> list[str]:
    """fp32 tensors of the main graph that are computed or fed, in graph order."""
    import onnx

    types = tensor_types(model)
    constant = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input]
    names += [name for node in model.graph.node for name in node.output]
    wanted = [name for name in names if name and types.get(name) == onnx.TensorProto.FLOAT]
    return [name for name in dict.fromkeys(wanted) if name not in constant]


def feeds_of(order: BuildInput, *, limit: int) -> Iterable[Mapping[str, Array]]:
    """At most `limit` calibration samples, or synthetic inputs if there are none."""
    if order.calibration:
        return sample_feeds(order.calibration, order.inputs, limit=limit)
    return synthetic_feeds(order.inputs, order.ranges, count=min(limit, SYNTHETIC_SAMPLES))


def observed_magnitudes(
    order: BuildInput, prepared: Prepared, model: Any, *, limit: int = OBSERVED_SAMPLES
) -> Observed:
    """Run the fp32 graph and keep the largest magnitude of every float tensor."""
    tensors = float_activations(model)
    found: dict[str, float] = {}
    count = 0
    for sample in observed_samples(order, prepared, tensors, limit=limit):
        count += 1
        for name, array in sample.items():
            if array.size:
                most = float(np.max(np.abs(array)))
                found[name] = max(found.get(name, 0.0), most if np.isfinite(most) else np.inf)
    return Observed(found, "calibration" if order.calibration else "synthetic", count)


def observed_samples(
    order: BuildInput, prepared: Prepared, tensors: list[str], *, limit: int
) -> Iterator[dict[str, Array]]:
    """The named tensors of the fp32 graph, one sample at a time."""
    return calibration.observe(prepared, tensors, lambda: feeds_of(order, limit=limit), threads=order.threads)
