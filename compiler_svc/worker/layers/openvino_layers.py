# SPDX-License-Identifier: Apache-2.0
"""Looks into OpenVINO IR: int8 by NNCF (FakeQuantize and 8-bit constants), and 8- and 4-bit weights.

IR keeps the names of ONNX tensors, so an operation's output is found by them. Exposing one ends the fusion that would
have gone over it.

A layer alone is tried in a graph made of two: the converted source model, and the artifact's operations between that
layer's input and its result, with their constants. Each costs a compilation, as a compiled model cannot be switched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compiler_svc.worker.layers.base import ArtifactView, ProbeOrder
from compiler_svc.worker.layers.error_sum import ErrorSum
from compiler_svc.worker.layers.renamed import Renamed
from dovetail.engines import Session, SessionOptions, create_engine
from dovetail.engines.openvino_engine import import_openvino
from dovetail.errors import BuildFailedError, UnsupportedError, brief
from dovetail.layers import LIMIT_DB
from dovetail.tensor import Array

ENGINE = "openvino"

_SMALL_TYPES = frozenset({"i8", "u8", "i4", "u4", "nf4"})
_NO_TENSOR = frozenset({"Constant", "Result"})
_EXACT = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": "1"}


def open_view(order: ProbeOrder) -> ArtifactView:
    """Open the artifact's .xml and .bin.

    Raises:
        BuildFailedError: They cannot be read.
    """
    return IrView(_read(order), order.options, order.scratch)


def alone(order: ProbeOrder, tensors: Mapping[str, str]) -> Mapping[str, float]:
    """See `LayerProbe.alone`."""
    openvino = import_openvino()
    core = openvino.Core()
    try:
        source, built = core.read_model(str(order.model)), _read(order)
        expected = _outputs(core, source, order)
        figures: dict[str, float] = {}
        for layer, tensor in tensors.items():
            if order.expired():
                raise UnsupportedError(f"the time was over after {len(figures)} of {len(tensors)} layers")
            mixed = _spliced(openvino, source.clone(), built.clone(), tensor)
            figures[layer] = LIMIT_DB if mixed is None else _worst(expected, _outputs(core, mixed, order))
    except RuntimeError as exc:
        raise UnsupportedError(f"the layers cannot be taken apart: {brief(str(exc))}") from exc
    return figures


class IrView:
    """A model in memory whose tensors can be exposed; changed copies are written to scratch to be loaded."""

    def __init__(self, model: Any, options: SessionOptions, scratch: Path) -> None:
        self._model, self._options, self._scratch = model, options, scratch
        self._ports = ports_of(model)
        self.tensors = frozenset(self._ports)

    def quantised(self, tensor: str, known: frozenset[str]) -> bool:
        """See `ArtifactView.quantised`."""
        return any(is_quantising(node) for node in cone(self._ports[tensor].get_node(), known))

    def expose(self, tensors: Sequence[str]) -> Session:
        """See `ArtifactView.expose`."""
        openvino = import_openvino()
        changed = self._model.clone()
        ports = ports_of(changed)
        names: dict[str, str] = {}
        shown: dict[tuple[str, int], tuple[Any, str]] = {}
        for tensor in tensors:
            port = ports[tensor]
            place = (port.get_node().get_name(), port.get_index())
            names[tensor] = shown.setdefault(place, (port, tensor))[1]
        for port, name in shown.values():
            port.get_tensor().set_names({name})
        outputs = [port for port, _ in shown.values()]
        exposed = openvino.Model(outputs, changed.get_parameters(), "exposed")
        return Renamed(self._load(openvino, exposed), names)

    def _load(self, openvino: Any, model: Any) -> Session:
        files = {f"model{end}": self._scratch / f"exposed{end}" for end in (".xml", ".bin")}
        try:
            openvino.save_model(model, str(files["model.xml"]), compress_to_fp16=False)
            return create_engine(ENGINE).load(files, self._options)
        except RuntimeError as exc:
            raise BuildFailedError(f"openvino cannot show these tensors: {brief(str(exc))}") from exc
        finally:
            for path in files.values():
                path.unlink(missing_ok=True)


def ports_of(model: Any) -> dict[str, Any]:
    """Tensor name -> the port that writes it; inputs too."""
    return {
        str(name): port
        for node in model.get_ordered_ops()
        if node.get_type_name() not in _NO_TENSOR
        for port in node.outputs()
        for name in port.get_names()
    }


def cone(node: Any, known: frozenset[str]) -> Iterator[Any]:
    """The node and those before it, each once, until the known tensors."""
    front, seen = [node], set[str]()
    while front:
        current = front.pop()
        if current.get_name() in seen:
            continue
        seen.add(current.get_name())
        yield current
        front += [port.get_node() for port in current.input_values() if not known & port.get_names()]


def is_quantising(node: Any) -> bool:
    """True for FakeQuantize, and for constants in 8 or 4 bits."""
    if node.get_type_name() == "FakeQuantize":
        return True
    return node.get_type_name() == "Constant" and node.get_output_element_type(0).get_type_name() in _SMALL_TYPES


def _read(order: ProbeOrder) -> Any:
    paths = {Path(name).suffix: path for name, path in order.files.items()}
    try:
        return import_openvino().Core().read_model(str(paths[".xml"]), str(paths[".bin"]))
    except (RuntimeError, KeyError) as exc:
        raise BuildFailedError(f"the artifact's graph cannot be read: {brief(str(exc))}") from exc


def _spliced(openvino: Any, source: Any, built: Any, tensor: str) -> Any:
    """The source model with one tensor computed as in the artifact; None if the artifact does not quantise it."""
    ours, theirs = ports_of(source), ports_of(built)
    if tensor not in ours or tensor not in theirs:
        return None
    known = frozenset(ours) - {tensor}
    nodes = list(cone(theirs[tensor].get_node(), known))
    if not any(is_quantising(node) for node in nodes):
        return None
    for node in nodes:
        for place in node.inputs():
            if names := known & place.get_source_output().get_names():
                place.replace_source_output(ours[sorted(names)[0]])
    result = theirs[tensor]
    result.get_tensor().set_names(set())
    for place in list(ours[tensor].get_target_inputs()):
        place.replace_source_output(result)
    return openvino.Model(source.get_results(), source.get_parameters(), "one layer")


def _outputs(core: Any, model: Any, order: ProbeOrder) -> list[list[Array]]:
    """Float outputs of the model for each input, as copies."""
    request = core.compile_model(model, "CPU", _EXACT).create_infer_request()
    runs = []
    for feed in order.feeds:
        results = request.infer(dict(feed))
        arrays = [results[index].copy() for index in range(len(model.outputs))]
        runs.append([array for array in arrays if array.dtype.kind == "f"])
    if not runs[0]:
        raise UnsupportedError("the model has no float output to compare")
    return runs


def _worst(expected: Sequence[Sequence[Array]], actual: Sequence[Sequence[Array]]) -> float:
    sums = [ErrorSum() for _ in expected[0]]
    for left, right in zip(expected, actual, strict=True):
        for total, one, other in zip(sums, left, right, strict=True):
            total.add(one, other)
    return min(total.snr_db for total in sums)
