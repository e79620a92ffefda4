# SPDX-License-Identifier: Apache-2.0
"""An ONNX artifact's graph, opened so that tensors inside it can be seen.

A tensor that the artifact quantises is exposed as what the next layers read (its DequantizeLinear), so that integer
kernels keep being used up to it; their saturation is then in the figures. The library's own
`onnxruntime.quantization.qdq_loss_debug` (1.31) exposes the value before quantisation and keeps the activations of all
samples in memory, so it is not used here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from compiler_svc.worker.layers.renamed import Renamed
from dovetail.engines import Session, SessionOptions, create_engine
from dovetail.errors import BuildFailedError, brief

ENGINE = "onnxruntime"

_CONVERSIONS = frozenset({"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"})
_INTEGER = ("QLinear", "QGemm", "QAttention", "QEmbed", "DynamicQuantize")
_PROBE_SUFFIX = "__dovetail_seen"


class OnnxView:
    """An ONNX file whose tensors can be exposed. Changed copies are written beside it, where its weights are found."""

    def __init__(self, path: Path, options: SessionOptions) -> None:
        import onnx

        try:
            self._model = onnx.load(str(path), load_external_data=False)
        except Exception as exc:  # the library and protobuf raise families of their own
            raise BuildFailedError(f"the artifact's graph cannot be read: {brief(str(exc))}") from exc
        self._path, self._options = path, options
        graph = self._model.graph
        self.producers = {name: node for node in graph.node for name in node.output if name}
        self.users: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.tensors = frozenset(self.producers)

    def quantised(self, tensor: str, known: frozenset[str]) -> bool:
        """See `ArtifactView.quantised`.

        A tensor that is only quantised for its readers was computed in float, and so was one that a float operator
        computed from a tensor that came to it quantised.
        """
        return any(self._computes_quantised(node) for node in self.cone(tensor, known))

    def _computes_quantised(self, node: Any) -> bool:
        """True for an integer operator, or one whose operands (all but a bias) are all restored from integers."""
        if node.op_type in _CONVERSIONS:
            return False
        if is_quantising(node):
            return True
        writers = [self.producers.get(name) for name in node.input[:2] if name]
        return bool(writers) and all(writer is not None and writer.op_type == "DequantizeLinear" for writer in writers)

    def cone(self, tensor: str, known: frozenset[str]) -> Iterator[Any]:
        """Nodes between the known tensors and this one, each once, from it backwards."""
        front, seen = [tensor], set[int]()
        while front:
            node = self.producers.get(front.pop())
            if node is None or id(node) in seen:
                continue
            seen.add(id(node))
            yield node
            front += [name for name in node.input if name not in known]

    def seen_by_readers(self, tensor: str) -> list[Any]:
        """QuantizeLinear and DequantizeLinear through which its readers see the tensor; empty if they see it itself."""
        for quantise in self.users.get(tensor, ()):
            if quantise.op_type == "QuantizeLinear" and quantise.input[0] == tensor:
                for restore in self.users.get(quantise.output[0], ()):
                    if restore.op_type == "DequantizeLinear":
                        return [quantise, restore]
        return []

    def expose(self, tensors: Sequence[str]) -> Session:
        """See `ArtifactView.expose`."""
        import onnx

        changed = onnx.ModelProto()
        changed.CopyFrom(self._model)
        del changed.graph.output[:]
        names: dict[str, str] = {}
        for tensor in tensors:
            names[tensor] = self._exposed(changed, tensor)
            changed.graph.output.append(onnx.ValueInfoProto(name=names[tensor]))
        path = self._path.with_name(f"{self._path.stem}-exposed.onnx")
        path.write_bytes(changed.SerializeToString())
        try:
            session = create_engine(ENGINE).load({"model.onnx": path}, self._options)
        finally:
            path.unlink()
        return Renamed(session, names)

    def _exposed(self, changed: Any, tensor: str) -> str:
        """The output that shows a tensor: itself, or a second DequantizeLinear behind its QuantizeLinear."""
        pair = self.seen_by_readers(tensor)
        if not pair:
            return tensor
        restore = changed.graph.node.add()
        restore.CopyFrom(pair[1])
        restore.name = restore.output[0] = tensor + _PROBE_SUFFIX
        return str(restore.output[0])


def is_quantising(node: Any) -> bool:
    """True for operators that read or give quantised values."""
    kind = str(node.op_type)
    if kind in _CONVERSIONS or kind == "GatherBlockQuantized":
        return True
    return kind.endswith(("Integer", "NBits", "IntegerToFloat")) or kind.startswith(_INTEGER)
