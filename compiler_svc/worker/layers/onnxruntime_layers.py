# SPDX-License-Identifier: Apache-2.0
"""Looks into ONNX Runtime artifacts: static (QDQ), dynamic and weight-only int8 and int4, and plain float graphs."""

from __future__ import annotations

from collections.abc import Mapping

from compiler_svc.worker.layers import onnxruntime_alone
from compiler_svc.worker.layers.base import ArtifactView, ProbeOrder
from compiler_svc.worker.layers.onnxruntime_view import ENGINE, OnnxView
from dovetail.engines import SessionOptions

__all__ = ["ENGINE", "alone", "open_reference", "open_view"]


def open_view(order: ProbeOrder) -> ArtifactView:
    """Open the artifact's one .onnx file.

    Raises:
        BuildFailedError: It cannot be read.
    """
    path = next(path for name, path in sorted(order.files.items()) if name.endswith(".onnx"))
    return OnnxView(path, order.options)


def open_reference(order: ProbeOrder) -> ArtifactView:
    """Open the source model as the gate's reference: fp32, not optimised."""
    return OnnxView(order.model, SessionOptions(threads=1, optimize=False))


def alone(order: ProbeOrder, tensors: Mapping[str, str]) -> Mapping[str, float]:
    """See `LayerProbe.alone`."""
    return onnxruntime_alone.alone(order, tensors)
