# SPDX-License-Identifier: Apache-2.0
"""A TensorRT that "builds" the net of `onnx_models.conv_net`: the strict stand-in with a script, for both majors.

Nothing is compiled: the plan is a header with a few bytes behind it. What it is for is the order and the arguments of
the builder's calls, and what becomes of each thing that TensorRT may answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tests.fakes.fake_plan import plan_bytes
from tests.fakes.strict_tensorrt import made, strict_tensorrt

VERSIONS = {10: "10.16.1.11", 11: "11.4.0.106"}
_TYPES = {"fp16": "Half", "fp32": "Float", "int8": "Int8", "bf16": "BFloat16", "fp8": "FP8"}
_TENSORS = {"image": (-1, 1, 8, 8), "logits": (-1, 10)}


def inspector_text(major: int, layers: Mapping[str, str]) -> str:
    """What the inspector says of an engine whose layers were made from these ONNX nodes, with that precision each."""

    def tensor(precision: str) -> dict[str, Any]:
        name = _TYPES[precision]
        described = {"Format/Datatype": name} if major == 10 else {"Format": "Row major linear", "DataType": name}
        return {"Name": "t", "Location": "Device", "Dimensions": [1, 8], **described}

    rows = [
        {
            "Name": f"{node} + relu",
            "LayerType": "CaskConvolution",
            "Inputs": [tensor(precision)],
            "Outputs": [tensor(precision)],
            "Metadata": f"[ONNX Layer: {node}]\x1e[ONNX Layer: {node}_relu]",
        }
        for node, precision in layers.items()
    ]
    border = {"Bindings": ["image", "logits"]} if major == 10 else {"I/O Tensors": [{"Name": "image"}]}
    return json.dumps({"Layers": rows, **border})


def building_tensorrt(major: int, layers: Mapping[str, str], script: Mapping[str, Any] | None = None) -> Any:
    """The `tensorrt` module; `layers` is what the inspector will say, `script` changes single answers."""
    holder: dict[str, Any] = {}

    def make(name: str, /, **properties: Any) -> Any:
        return made(holder["trt"], name, **properties)

    def run(context: Any, stream: int) -> bool:
        for node in layers:
            context.profiler.report_layer_time(node, 0.5 if node == "conv1" else 0.25)
        return True

    answers: dict[str, Any] = {
        "get_plugin_registry": lambda: make("IPluginRegistry"),
        "IPluginRegistry.load_library": object(),
        "OnnxParser.parse_from_file": True,
        "INetworkDefinition.num_inputs": 1,
        "INetworkDefinition.get_input": lambda this, index: make("ITensor", name="image", is_shape_tensor=False),
        "IBuilderConfig.add_optimization_profile": 0,
        "IBuilderConfig.set_timing_cache": True,
        "IBuilderConfig.get_timing_cache": lambda this: make("ITimingCache"),
        "ITimingCache.combine": True,
        "ITimingCache.serialize": b"measured",
        "Builder.build_serialized_network": plan_bytes(VERSIONS[major]),
        "Runtime.deserialize_cuda_engine": lambda this, plan: make("ICudaEngine"),
        "EngineInspector.get_engine_information": inspector_text(major, layers),
        "OnnxParserRefitter.refit_from_file": True,
        "Refitter.refit_cuda_engine": True,
        "ICudaEngine.num_io_tensors": len(_TENSORS),
        "ICudaEngine.get_tensor_name": lambda this, index: list(_TENSORS)[index],
        "ICudaEngine.get_tensor_dtype": lambda this, name: holder["trt"].DataType.FLOAT,
        "ICudaEngine.get_tensor_format": lambda this, name: holder["trt"].TensorFormat.LINEAR,
        "ICudaEngine.get_tensor_shape": lambda this, name: _TENSORS[name],
        "ICudaEngine.get_tensor_location": lambda this, name: holder["trt"].TensorLocation.DEVICE,
        "ICudaEngine.get_tensor_mode": lambda this, name: holder["trt"].TensorIOMode[
            "INPUT" if name == "image" else "OUTPUT"
        ],
        "ICudaEngine.get_tensor_profile_shape": lambda this, name, index: [(1, 1, 8, 8), (8, 1, 8, 8), (32, 1, 8, 8)],
        "IExecutionContext.set_optimization_profile_async": True,
        "IExecutionContext.set_input_shape": True,
        "IExecutionContext.infer_shapes": [],
        "IExecutionContext.get_tensor_shape": lambda this, name: (8, *_TENSORS[name][1:]),
        "IExecutionContext.set_tensor_address": True,
        "IExecutionContext.execute_async_v3": run,
    }
    holder["trt"] = strict_tensorrt(major=major, script={**answers, **(script or {})})
    return holder["trt"]
