# SPDX-License-Identifier: Apache-2.0
"""The models that the conformance suite asks: small ONNX files that any server with ONNX Runtime can load.

    python -m tests.conformance.models FOLDER

writes them as a Triton model repository (`FOLDER/<model>/1/model.onnx` and `config.pbtxt`, beside it `config.json` for
ours), for running the suite against another server. What each model is for:

* `identity_<datatype>`: gives back what it gets, of shape (rows, anything); one for each datatype;
* `add_sub`: two inputs and two outputs;
* `whole`: an identity that is not batched, so shapes are taken as they are;
* `picky`: picks elements of a table of four by index, and fails in the engine for an index that there is not;
* `slow`: takes as long as its input says, so that a test can have the server busy.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MAX_BATCH_SIZE = 8
OPSET, IR_VERSION = 16, 8

ONNX_TYPES: Mapping[str, int] = {
    "BOOL": TensorProto.BOOL, "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16, "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64, "INT8": TensorProto.INT8, "INT16": TensorProto.INT16, "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64, "FP16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16, "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE, "BYTES": TensorProto.STRING,
}  # fmt: skip
DATATYPES = tuple(ONNX_TYPES)


@dataclass(frozen=True, slots=True)
class TestedModel:
    """A model of the suite.

    Attributes:
        name: As requests name it.
        max_batch_size: Most rows of a request; 0: not batched.
        inputs: Name -> datatype and shape, with the batch axis.
        outputs: Likewise.
        graph: Makes its graph.
    """

    __test__ = False

    name: str
    max_batch_size: int
    inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    outputs: Mapping[str, tuple[str, tuple[int, ...]]]
    nodes: Callable[[], list[onnx.NodeProto]]

    def to_onnx(self) -> onnx.ModelProto:
        """The ONNX model."""
        graph = helper.make_graph(self.nodes(), self.name, _infos(self.inputs), _infos(self.outputs))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)

    def to_pbtxt(self) -> str:
        """Its configuration for Triton."""
        lines = [f'name: "{self.name}"', 'backend: "onnxruntime"', f"max_batch_size: {self.max_batch_size}"]
        for kind, tensors in (("input", self.inputs), ("output", self.outputs)):
            for name, (datatype, shape) in tensors.items():
                dims = shape[1:] if self.max_batch_size else shape
                lines.append(f'{kind} [ {{ name: "{name}" data_type: {config_type(datatype)} dims: {list(dims)} }} ]')
        if self.max_batch_size:
            lines.append("dynamic_batching { }")
        return "\n".join([*lines, "instance_group [ { kind: KIND_CPU count: 1 } ]", ""])

    def to_config(self) -> dict[str, object]:
        """Its configuration for our server: the same in the form of JSON."""

        def tensors(named: Mapping[str, tuple[str, tuple[int, ...]]]) -> list[dict[str, object]]:
            first = 1 if self.max_batch_size else 0
            return [
                {"name": name, "data_type": config_type(datatype), "dims": list(shape[first:])}
                for name, (datatype, shape) in named.items()
            ]

        return {
            "name": self.name,
            "backend": "onnxruntime",
            "max_batch_size": self.max_batch_size,
            "input": tensors(self.inputs),
            "output": tensors(self.outputs),
            **({"dynamic_batching": {}} if self.max_batch_size else {}),
            "instance_group": [{"kind": "KIND_CPU", "count": 1}],
        }


def config_type(datatype: str) -> str:
    """A datatype as configurations call it."""
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def identity_name(datatype: str) -> str:
    """Name of the identity of a datatype."""
    return f"identity_{datatype.lower()}"


def _identity(name: str, datatype: str, max_batch_size: int) -> TestedModel:
    tensor = (datatype, (-1, -1))
    return TestedModel(
        name, max_batch_size, {"x": tensor}, {"y": tensor}, lambda: [helper.make_node("Identity", ["x"], ["y"])]
    )


def _add_sub_nodes() -> list[onnx.NodeProto]:
    return [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])]


def _picky_nodes() -> list[onnx.NodeProto]:
    table = numpy_helper.from_array(np.array([10, 20, 30, 40], dtype=np.float32), "table")
    return [
        helper.make_node("Constant", [], ["table"], value=table),
        helper.make_node("Gather", ["table", "index"], ["picked"], axis=0),
    ]


def _slow_nodes() -> list[onnx.NodeProto]:
    """A loop of matrix products, `turns` of them, each of which needs the one before it."""
    matrix = numpy_helper.from_array(np.eye(96, dtype=np.float32), "matrix")
    flat = numpy_helper.from_array(np.array([0, 1], dtype=np.int64), "axes")
    body = helper.make_graph(
        [
            helper.make_node("Constant", [], ["w"], value=matrix),
            helper.make_node("MatMul", ["state", "w"], ["next_state"]),
            helper.make_node("Identity", ["go_on"], ["goes_on"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [96, 96]),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next_state", TensorProto.FLOAT, [96, 96]),
        ],
    )
    return [
        helper.make_node("Constant", [], ["start"], value=matrix),
        helper.make_node("Constant", [], ["axes"], value=flat),
        helper.make_node("Squeeze", ["turns"], ["count"]),
        helper.make_node("Loop", ["count", "", "start"], ["end"], body=body),
        helper.make_node("ReduceSum", ["end", "axes"], ["trace"], keepdims=0),
        helper.make_node("Reshape", ["trace", "one"], ["done"]),
    ]


def _slow() -> TestedModel:
    def nodes() -> list[onnx.NodeProto]:
        one = numpy_helper.from_array(np.array([1], dtype=np.int64), "one")
        return [helper.make_node("Constant", [], ["one"], value=one), *_slow_nodes()]

    return TestedModel("slow", 0, {"turns": ("INT64", (1,))}, {"done": ("FP32", (1,))}, nodes)


MODELS: tuple[TestedModel, ...] = (
    *(_identity(identity_name(datatype), datatype, MAX_BATCH_SIZE) for datatype in DATATYPES),
    _identity("whole", "FP32", 0),
    TestedModel(
        "add_sub",
        MAX_BATCH_SIZE,
        {"a": ("FP32", (-1, 4)), "b": ("FP32", (-1, 4))},
        {"sum": ("FP32", (-1, 4)), "difference": ("FP32", (-1, 4))},
        _add_sub_nodes,
    ),
    TestedModel("picky", MAX_BATCH_SIZE, {"index": ("INT64", (-1, 1))}, {"picked": ("FP32", (-1, 1))}, _picky_nodes),
    _slow(),
)


def write_models(folder: Path) -> None:
    """Write all models as a Triton model repository."""
    for model in MODELS:
        version = folder / model.name / "1"
        version.mkdir(parents=True)
        onnx.save(model.to_onnx(), version / "model.onnx")
        (folder / model.name / "config.pbtxt").write_text(model.to_pbtxt())
        (folder / model.name / "config.json").write_text(json.dumps(model.to_config()))


def _infos(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(name, ONNX_TYPES[datatype], [None if dim < 0 else dim for dim in shape])
        for name, (datatype, shape) in tensors.items()
    ]


if __name__ == "__main__":
    write_models(Path(sys.argv[1]))
