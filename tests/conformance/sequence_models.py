# SPDX-License-Identifier: Apache-2.0
"""Models with sequences and decoupled models of the conformance suite, named like Triton's own where they do the same.

    python -m tests.conformance.sequence_models FOLDER

adds them to a Triton model repository; the Python ones need our Python engine. What each is for:

* `simple_sequence`: direct, OUTPUT = INPUT + START; a row that is not ready gives 0;
* `simple_dyna_sequence`: oldest, OUTPUT = INPUT + START, and the sequence's id is added at its end;
* `simple_string_dyna_sequence`: the same for ids that are text;
* `onnx_sequence_int32`, `onnx_dyna_sequence_int32`: direct and oldest with implicit state, OUTPUT is the sum so far;
* `sequence_initial`: the same, beginning at 1000;
* `sequence_one_slot`: the same, one slot, idle after 300 ms;
* `sequence_python`: a Python model that says which sequence it sees and counts its requests itself;
* `sequence_slow`: the same sum, INPUT milliseconds late: fails for -1;
* `repeat_int32`: decoupled, OUT[i] = IN[i] after DELAY[i] ms each, ends after WAIT ms more,
  or at once if nobody waits;
* `square_int32`: decoupled, IN replies of IN;
* `repeat_failing`: decoupled, IN replies, then it fails;
* `repeat_cancelled`: decoupled, replies for ever; with IN 0 it tells in one reply how many runs saw that nobody waits.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
from onnx import helper

from tests.conformance.models import IR_VERSION, ONNX_TYPES, OPSET, config_type

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]

_CONTROLS = {
    "START": {"kind": "CONTROL_SEQUENCE_START", "int32_false_true": [0, 1]},
    "END": {"kind": "CONTROL_SEQUENCE_END", "int32_false_true": [0, 1]},
    "READY": {"kind": "CONTROL_SEQUENCE_READY", "int32_false_true": [0, 1]},
    "CORRID": {"kind": "CONTROL_SEQUENCE_CORRID", "data_type": "TYPE_UINT64"},
    "TEXT_ID": {"kind": "CONTROL_SEQUENCE_CORRID", "data_type": "TYPE_STRING"},
}
_INITIAL = {"data_type": "TYPE_INT32", "dims": [1], "name": "first"}
_STATE = {
    "input_name": "INPUT_STATE", "output_name": "OUTPUT_STATE", "data_type": "TYPE_INT32", "dims": [1],
    "initial_state": [{**_INITIAL, "zero_data": True}],  # without it Triton begins with whatever is in memory
}  # fmt: skip
_ONE = ("INT32", (1,))

_COUNTING = """
class Model:
    def load(self, context):
        self.counts = {}

    def infer(self, request):
        texts = []
        for row, value in zip(request.sequences, request["INPUT"].ravel().tolist()):
            if not row.ready:
                texts.append(["not ready"])
                continue
            self.counts[row.id] = 1 if row.start else self.counts[row.id] + 1
            kind = "text" if isinstance(row.id, str) else "number"
            texts.append([f"{kind} {row.id} {row.start} {row.end} {self.counts[row.id]} {value}"])
            if row.end:
                del self.counts[row.id]
        return {"OUTPUT": texts}
"""

_TEXT_DYNA = """
import numpy as np

class Model:
    def infer(self, request):
        output = request["INPUT"] + request["START"]
        for row, text in enumerate(request["TEXT_ID"].ravel()):
            if request["END"][row, 0]:
                output[row] += int(text)
        return {"OUTPUT": np.where(request["READY"] != 0, output, 0).astype(np.int32)}
"""

_SLOW = """
import time

class Model:
    def infer(self, request):
        late_ms = int(request["INPUT"].max())
        if request["INPUT"].min() < 0:
            raise ValueError("less than nothing")
        time.sleep(late_ms / 1000)
        total = request["INPUT_STATE"] + request["INPUT"]
        return {"OUTPUT": total, "OUTPUT_STATE": total}
"""

_REPEAT = """
import time
import numpy as np

def rest(request, ms):
    until_s = time.monotonic() + ms / 1000
    while time.monotonic() < until_s and not request.cancelled:
        time.sleep(min(0.005, ms / 1000))

class Model:
    def infer(self, request):
        delays = request["DELAY"].tolist() if "DELAY" in request else []
        for place, value in enumerate(request["IN"].tolist()):
            rest(request, delays[place] if place < len(delays) else 0)
            yield {"OUT": np.array([value], np.int32), "IDX": np.array([place], np.uint32)}
        rest(request, request["WAIT"].item() if "WAIT" in request else 0)
"""

_SQUARE = """
class Model:
    def infer(self, request):
        for _ in range(request["IN"].item()):
            yield {"OUT": request["IN"]}
"""

_FAILING = (
    _SQUARE
    + """        raise ValueError(f"failed after {request['IN'].item()}")
"""
)

_CANCELLED = """
import numpy as np

class Model:
    def load(self, context):
        self.seen = 0

    def infer(self, request):
        if not request["IN"].item():
            yield {"OUT": np.array([self.seen], np.int32)}
            return
        try:
            while True:
                yield {"OUT": request["IN"]}
        finally:
            self.seen += request.cancelled
"""


def write_sequences(folder: Path) -> None:
    """Add all of them to a model repository."""
    _write_onnx_sequences(folder)
    one_text = {"OUTPUT": ("BYTES", (1,))}
    dyna = {"oldest": {"max_candidate_sequences": 16}}
    _python(folder, "sequence_python", _COUNTING, {"INPUT": _ONE}, one_text, _sequences(direct={}), max_batch_size=4)
    _python(
        folder, "simple_string_dyna_sequence", _TEXT_DYNA, {"INPUT": _ONE}, {"OUTPUT": _ONE},
        _sequences("START", "END", "READY", "TEXT_ID", **dyna), max_batch_size=4,
    )  # fmt: skip
    slow = _sequences(state=[_STATE], direct={})
    _python(folder, "sequence_slow", _SLOW, {"INPUT": _ONE}, {"OUTPUT": _ONE}, slow, max_batch_size=4)
    vector, decoupled = ("INT32", (-1,)), {"model_transaction_policy": {"decoupled": True}}
    repeated = {"IN": vector, "DELAY": ("UINT32", (-1,)), "WAIT": ("UINT32", (1,))}
    _python(folder, "repeat_int32", _REPEAT, repeated, {"OUT": _ONE, "IDX": ("UINT32", (1,))}, decoupled, optional=True)
    for name, code in (("square_int32", _SQUARE), ("repeat_failing", _FAILING), ("repeat_cancelled", _CANCELLED)):
        _python(folder, name, code, {"IN": _ONE}, {"OUT": _ONE}, decoupled)


SEQUENCE_NAMES = (
    "simple_sequence", "simple_dyna_sequence", "simple_string_dyna_sequence", "onnx_sequence_int32",
    "onnx_dyna_sequence_int32", "sequence_initial", "sequence_one_slot", "sequence_python", "sequence_slow",
    "repeat_int32", "square_int32", "repeat_failing", "repeat_cancelled",
)  # fmt: skip
"""All models that `write_sequences` adds."""


def _write_onnx_sequences(folder: Path) -> None:
    candidates = {"oldest": {"max_candidate_sequences": 16}}
    plain = _sequences("START", "READY", direct={}, max_sequence_idle_microseconds=5_000_000)
    _onnx(folder, "simple_sequence", _simple_nodes, ("START", "READY"), plain, max_batch_size=4)
    dyna = _sequences("START", "END", "READY", "CORRID", **candidates)
    _onnx(folder, "simple_dyna_sequence", _dyna_nodes, ("START", "END", "READY", "CORRID"), dyna, max_batch_size=4)
    stateful = {"state": [_STATE], "max_sequence_idle_microseconds": 60_000_000}
    _onnx(folder, "onnx_sequence_int32", _sum_nodes, (), _sequences(direct={}, **stateful), max_batch_size=4)
    _onnx(folder, "onnx_dyna_sequence_int32", _sum_nodes, (), _sequences(**candidates, **stateful), max_batch_size=4)
    initial = _sequences(direct={}, state=[{**_STATE, "initial_state": [{**_INITIAL, "data_file": "first"}]}])
    _onnx(folder, "sequence_initial", _sum_nodes, (), initial, max_batch_size=4)
    (folder / "sequence_initial/initial_state").mkdir()
    (folder / "sequence_initial/initial_state/first").write_bytes((1000).to_bytes(4, "little"))
    one_slot = _sequences(direct={}, state=[_STATE], max_sequence_idle_microseconds=300_000)
    _onnx(folder, "sequence_one_slot", _sum_nodes, (), one_slot, max_batch_size=1)


def _sequences(*controls: str, **fields: object) -> dict[str, object]:
    inputs = [{"name": name, "control": [_CONTROLS[name]]} for name in controls]
    return {"sequence_batching": {**({"control_input": inputs} if inputs else {}), **fields}}


def _sum_nodes() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Add", ["INPUT", "INPUT_STATE"], ["OUTPUT"]),
        helper.make_node("Identity", ["OUTPUT"], ["OUTPUT_STATE"]),
    ]


def _simple_nodes(total: str = "OUTPUT") -> list[onnx.NodeProto]:
    return [helper.make_node("Add", ["INPUT", "START"], ["sum"]), helper.make_node("Mul", ["sum", "READY"], [total])]


def _dyna_nodes() -> list[onnx.NodeProto]:
    return [
        *_simple_nodes("total"),
        helper.make_node("Cast", ["CORRID"], ["id"], to=ONNX_TYPES["INT32"]),
        helper.make_node("Mul", ["id", "END"], ["last"]),
        helper.make_node("Add", ["total", "last"], ["OUTPUT"]),
    ]


def _onnx(
    folder: Path,
    name: str,
    nodes: Callable[[], list[onnx.NodeProto]],
    controls: tuple[str, ...],
    config: Mapping[str, object],
    *,
    max_batch_size: int,
) -> None:
    states = ("INPUT_STATE", "OUTPUT_STATE") if nodes is _sum_nodes else ()
    inputs = ["INPUT", *controls, *states[:1]]
    graph = helper.make_graph(
        nodes(),
        name,
        [_info(tensor, "UINT64" if tensor == "CORRID" else "INT32") for tensor in inputs],
        [_info(tensor, "INT32") for tensor in ("OUTPUT", *states[1:])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    version = folder / name / "1"
    version.mkdir(parents=True)
    onnx.save(model, version / "model.onnx")
    _write_config(folder / name, "onnxruntime", max_batch_size, {"INPUT": _ONE}, {"OUTPUT": _ONE}, config)


def _python(
    folder: Path,
    name: str,
    code: str,
    inputs: Tensors,
    outputs: Tensors,
    config: Mapping[str, object],
    *,
    max_batch_size: int = 0,
    optional: bool = False,
) -> None:
    version = folder / name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(code)
    _write_config(folder / name, "python", max_batch_size, inputs, outputs, config, optional=optional)


def _write_config(
    folder: Path,
    backend: str,
    max_batch_size: int,
    inputs: Tensors,
    outputs: Tensors,
    config: Mapping[str, object],
    *,
    optional: bool = False,
) -> None:
    described = [
        [
            {"name": name, "data_type": config_type(datatype), "dims": list(dims)}
            for name, (datatype, dims) in side.items()
        ]
        for side in (inputs, outputs)
    ]
    if optional:  # all but the first
        described[0] = [described[0][0], *({**tensor, "optional": True} for tensor in described[0][1:])]
    document = {
        "name": folder.name, "backend": backend, "max_batch_size": max_batch_size, "input": described[0],
        "output": described[1], "instance_group": [{"kind": "KIND_CPU", "count": 1}], **config,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(document))


def _info(name: str, datatype: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, ONNX_TYPES[datatype], [None, 1])


if __name__ == "__main__":
    write_sequences(Path(sys.argv[1]))
