# SPDX-License-Identifier: Apache-2.0
"""Looks into quantised TensorRT artifacts, on the CPU: what their graph quantises, run by ONNX Runtime.

A plan cannot be opened, but in a strongly typed network it is the graph that says what is quantised, with which scales.
The build leaves that graph beside the plan, with fp32 around the pairs, so that only the error of quantisation counts.
What the GPU's kernels round beyond that is in the gate's figures, not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from compiler_svc.backends.tensorrt_precision import PAIRS_FILE
from compiler_svc.worker.layers import onnxruntime_layers
from compiler_svc.worker.layers.base import ArtifactView, ProbeOrder
from dovetail.engines import SessionOptions
from dovetail.errors import UnsupportedError
from dovetail.rules.tensorrt_recipes import ENGINE, PLAN_FILE

__all__ = ["ENGINE", "alone", "open_view"]


def open_view(order: ProbeOrder) -> ArtifactView:
    """Open the graph that the plan was built from.

    Raises:
        UnsupportedError: The build left none: nothing is quantised in it.
        BuildFailedError: It cannot be read.
    """
    return onnxruntime_layers.open_view(_of_the_graph(order))


def alone(order: ProbeOrder, tensors: Mapping[str, str]) -> Mapping[str, float]:
    """See `LayerProbe.alone`."""
    return onnxruntime_layers.alone(_of_the_graph(order), tensors)


def _of_the_graph(order: ProbeOrder) -> ProbeOrder:
    graph = order.files[PLAN_FILE].with_name(PAIRS_FILE)
    if not graph.exists():
        raise UnsupportedError("the plan was built without quantisation, so it has no layers to look into")
    return replace(order, files={"model.onnx": graph}, options=SessionOptions(threads=1, optimize=False))
