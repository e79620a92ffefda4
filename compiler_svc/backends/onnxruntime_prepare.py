# SPDX-License-Identifier: Apache-2.0
"""Makes a graph ready for quantisation (rule R13): opset raised, nodes named, shapes inferred, constants folded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler_svc.backends import onnxruntime_files as files
from compiler_svc.backends.base import BuildInput
from compiler_svc.backends.onnxruntime_nodes import name_nodes

_PER_CHANNEL_OPSET = 13  # QuantizeLinear has an axis since opset 13


@dataclass(frozen=True, slots=True)
class Prepared:
    """A graph made ready.

    Attributes:
        path: The prepared model.
        source: The graph it was made from, nodes named as `Recipe.excluded_nodes` names them, weights not loaded.
        external: True if its weights lie beside it.
        work: Directory for intermediate files; gone after the build.
    """

    path: Path
    source: Any
    external: bool
    work: Path

    def graph(self) -> Any:
        """The prepared model without weights that lie beside it."""
        import onnx

        return onnx.load(str(self.path), load_external_data=False)


def prepare(order: BuildInput, work: Path) -> Prepared:
    """Prepare the order's model, unless the recipe says `pre_process: false`; then only opset and names are seen to."""
    import onnx

    external = files.is_external(order.model)
    model = onnx.load(str(order.model))
    opset = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)
    if 0 < opset < _PER_CHANNEL_OPSET:
        model = onnx.version_converter.convert_version(model, _PER_CHANNEL_OPSET)
    name_nodes(model)
    source = work / "source.onnx"
    files.write(model, source, external=external)
    del model
    graph = onnx.load(str(source), load_external_data=False)
    if not order.recipe.options.get("pre_process", True):
        return Prepared(source, graph, external, work)
    order.report(0.1, "preparing the graph")
    prepared = work / "prepared.onnx"
    _pre_process(source, prepared, external=external)
    return Prepared(prepared, graph, external, work)


def _pre_process(source: Path, prepared: Path, *, external: bool) -> None:
    """Run quant_pre_process, giving up one step after the other.

    Where its optimiser fails it only logs and then trips over the missing file, so failures are retried without it.
    Source: onnxruntime 1.31.1, quantization/shape_inference.py.
    """
    from onnxruntime.quantization import quant_pre_process

    beside: dict[str, Any] = {
        "save_as_external_data": True,
        "all_tensors_to_one_file": True,
        "external_data_location": f"{prepared.name}.data",
    }
    retries: tuple[dict[str, bool], ...] = ({}, {"skip_optimization": True}, {"skip_symbolic_shape": True})
    given_up: dict[str, bool] = {}
    for index, retry in enumerate(retries):
        given_up |= retry
        try:
            quant_pre_process(source, prepared, **given_up, **(beside if external else {}))
            return
        except MemoryError:
            raise
        except Exception:  # undocumented mix of exceptions; the last one is reported by the caller
            if index == len(retries) - 1:
                raise
