# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on GPUs without one: what is asked of the library, what is refused, and the fp16 graph that is built.

The library stands in for itself only where a GPU would be needed; that its GPU package falls back to the CPU with a
warning was seen with onnxruntime-gpu 1.31.1.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from compiler_svc.backends import all_backends
from compiler_svc.backends.base import BuildInput, BuildOutput
from compiler_svc.backends.onnxruntime_gpu import with_shape_profile
from dovetail.contract import Contract
from dovetail.engines import SessionOptions, create_engine
from dovetail.engines.onnxruntime_engine import OnnxRuntimeEngine
from dovetail.engines.onnxruntime_gpu import placed_nodes
from dovetail.errors import EngineError, UnsupportedError
from dovetail.fingerprint import Fingerprint, RuntimeLibrary
from dovetail.gate import run_gate
from dovetail.rules import ModelFacts, onnxruntime_rules
from dovetail.rules.onnxruntime_gpu import CUDA_PROVIDER, TENSORRT_PROVIDER, options_by_provider
from dovetail.tensor import TensorSpec
from tests.fakes.machines import machine, nvidia
from tests.fakes.onnx_models import conv_net, images, save

CPU = "CPUExecutionProvider"
FACTS = ModelFacts(17, 8, 5000, has_calibration=False, operators=frozenset({"Conv", "Relu", "Gemm"}))
IMAGE, LOGITS = TensorSpec("image", "FP32", (-1, 1, 8, 8)), TensorSpec("logits", "FP32", (-1, 10))


def gpu_box() -> Fingerprint:
    found = machine(gpu=nvidia("8.9"))
    library = RuntimeLibrary("1.31.1", (TENSORRT_PROVIDER, CUDA_PROVIDER, CPU), {"cuda": "13.0"})
    return replace(found, facts=replace(found.facts, runtimes={"onnxruntime": library}))


def planned(name: str) -> tuple[Any, Contract]:
    box = gpu_box()
    known = (*onnxruntime_rules.recipes(box, FACTS), *onnxruntime_rules.extra_recipes(box, FACTS))
    recipe = next(item for item in known if item.name == name)
    return recipe, onnxruntime_rules.contract_for(recipe, FACTS, box, box)


def build(name: str, tmp_path: Path) -> BuildOutput:
    recipe, what = planned(name)
    model = save(conv_net(), tmp_path / "in.onnx")
    (tmp_path / "out").mkdir()
    order = BuildInput(
        model, recipe, what, (IMAGE,), (LOGITS,), FACTS, None, tmp_path / "out", 1, lambda fraction, text: None
    )
    return all_backends()["onnxruntime"].build(order)


@dataclass
class GpuPackage:
    """The library as a GPU package: its own settings, and sessions that say where the work went."""

    takes: tuple[str, ...] = (CUDA_PROVIDER, CPU)
    nodes: dict[str, tuple[str, ...]] = field(default_factory=lambda: {CUDA_PROVIDER: ("Conv", "Gemm")})
    available: tuple[str, ...] = (TENSORRT_PROVIDER, CUDA_PROVIDER, CPU)
    opened: list[Any] = field(default_factory=list)
    tells: bool = True

    __version__ = "1.31.1"
    SessionOptions = onnxruntime.SessionOptions
    ExecutionMode = onnxruntime.ExecutionMode
    GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel

    def get_available_providers(self) -> list[str]:
        return list(self.available)

    def InferenceSession(self, path: str, settings: Any, *, providers: Any, enable_fallback: int) -> Any:
        self.opened.append((settings, providers, enable_fallback))
        session = SimpleNamespace(get_providers=lambda: list(self.takes), get_inputs=list, get_outputs=list)
        if self.tells:
            session.get_provider_graph_assignment_info = lambda: [
                SimpleNamespace(ep_name=name, get_nodes=lambda types=types: [SimpleNamespace(op_type=t) for t in types])
                for name, types in self.nodes.items()
            ]
        return session


def load(library: GpuPackage, tmp_path: Path, **details: Any) -> Any:
    files = {"model.onnx": save(conv_net(), tmp_path / "m.onnx")}
    told = {"execution_provider": CUDA_PROVIDER, **details}
    return OnnxRuntimeEngine(library).load(files, SessionOptions(threads=1, device="cuda", details=told))


def test_provider_gets_the_contracts_options_and_may_leave_shapes_to_the_cpu(tmp_path: Path) -> None:
    library = GpuPackage(nodes={CUDA_PROVIDER: ("Conv",), CPU: ("Shape", "Gather")})
    _, what = planned("ort-cuda-fp32")

    load(library, tmp_path, **what.details)

    ((settings, providers, enable_fallback),) = library.opened
    assert providers[0] == (CUDA_PROVIDER, options_by_provider(what.details["provider_options"])[CUDA_PROVIDER])
    assert providers[1:] == [CPU]
    assert enable_fallback == 0
    with pytest.raises(RuntimeError):
        settings.get_session_config_entry("session.disable_cpu_ep_fallback")


def test_require_gpu_forbids_the_cpu_and_does_not_name_it(tmp_path: Path) -> None:
    library = GpuPackage()

    load(library, tmp_path, require_gpu=True)

    ((settings, providers, _),) = library.opened
    assert [name for name, _ in providers] == [CUDA_PROVIDER]
    assert settings.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"


def test_tensorrt_leaves_to_cuda_what_it_cannot_take(tmp_path: Path) -> None:
    library = GpuPackage((TENSORRT_PROVIDER, CUDA_PROVIDER, CPU), {TENSORRT_PROVIDER: ("Conv",)})
    _, what = planned("ort-tensorrt-fp16")

    load(library, tmp_path, **what.details)

    ((_, providers, _),) = library.opened
    assert [item[0] for item in providers[:2]] == [TENSORRT_PROVIDER, CUDA_PROVIDER]
    assert providers[0][1]["trt_engine_cache_enable"] == "0"


def test_session_that_fell_back_to_the_cpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="CUDAExecutionProvider was asked for and onnxruntime fell back to CPUExec"):
        load(GpuPackage((CPU,), {CPU: ("Conv", "Gemm")}), tmp_path)


def test_heavy_operators_on_the_cpu_are_refused_by_name(tmp_path: Path) -> None:
    library = GpuPackage(nodes={CUDA_PROVIDER: ("Relu",), CPU: ("Shape", "Conv", "Gemm")})

    with pytest.raises(EngineError, match="took 1 of 4 nodes; on the CPU would run Conv, Gemm"):
        load(library, tmp_path)


def test_session_without_a_node_on_the_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="took 0 of 1 nodes"):
        load(GpuPackage(nodes={CPU: ("Relu",)}), tmp_path)


def test_library_that_does_not_tell_placements_is_believed_about_providers_only(tmp_path: Path) -> None:
    assert load(GpuPackage(tells=False), tmp_path) is not None


def test_package_without_the_provider_and_unknown_providers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="has no CUDAExecutionProvider, only CPUExecutionProvider"):
        load(GpuPackage(available=(CPU,)), tmp_path)
    with pytest.raises(UnsupportedError, match="'ROCMExecutionProvider' is unknown"):
        load(GpuPackage(), tmp_path, execution_provider="ROCMExecutionProvider")


def test_the_installed_library_refuses_a_gpu_artifact_where_there_is_no_gpu(tmp_path: Path) -> None:
    if CUDA_PROVIDER in onnxruntime.get_available_providers():
        pytest.skip("this machine has the GPU package")
    built = build("ort-cuda-fp32", tmp_path)
    options = SessionOptions.of_contract(built.contract, threads=1, cpu_features=frozenset())

    with pytest.raises(UnsupportedError, match="has no CUDAExecutionProvider"):
        create_engine("onnxruntime").load(built.files, options)


def test_the_installed_library_tells_where_nodes_run(tmp_path: Path) -> None:
    settings = onnxruntime.SessionOptions()
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    path = str(save(conv_net(), tmp_path / "m.onnx"))

    placed = placed_nodes(onnxruntime.InferenceSession(path, settings, providers=[CPU]))

    assert set(placed) == {CPU}
    assert {"Conv", "Gemm"} <= set(placed[CPU])


def test_fp16_graph_for_the_gpu_has_half_weights_float_ends_and_right_answers(tmp_path: Path) -> None:
    built = build("ort-cuda-fp16", tmp_path)
    model = onnx.load(str(built.files["model.onnx"]))
    half = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT16]

    assert half
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert built.contract.text("execution_provider") == CUDA_PROVIDER
    feed = {"image": images(8)}
    engine = create_engine("onnxruntime")  # the graph is plain ONNX, so the CPU can judge its numbers
    want = engine.load({"model.onnx": tmp_path / "in.onnx"}, SessionOptions(threads=1, optimize=False)).run(feed)
    report = run_gate(want, engine.load(built.files, SessionOptions(threads=1)).run(feed), precision="fp16")
    assert report.passed, report.failures


def test_tensorrt_provider_gets_a_profile_for_free_batch_sizes(tmp_path: Path) -> None:
    built = build("ort-tensorrt-tf32", tmp_path)

    options = options_by_provider(built.contract.details["provider_options"])[TENSORRT_PROVIDER]
    shapes = [options[f"trt_profile_{end}_shapes"] for end in ("min", "opt", "max")]
    assert shapes == ["image:1x1x8x8", "image:8x1x8x8", "image:64x1x8x8"]


@pytest.mark.parametrize(
    ("name", "shape"), [("ort-cuda-fp32", (-1, 4)), ("ort-tensorrt-fp16", (2, 4)), ("ort-tensorrt-fp16", (-1, -1))]
)
def test_no_profile_for_other_providers_fixed_shapes_and_other_free_dimensions(
    name: str, shape: tuple[int, ...]
) -> None:
    _, what = planned(name)

    assert with_shape_profile(what, (TensorSpec("x", "FP32", shape),)) is what
