# SPDX-License-Identifier: Apache-2.0
"""The real backends: what each recipe option builds, that it is portable and right, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from compiler_svc.backends import all_backends
from compiler_svc.backends.base import BuildInput, BuildOutput, OperatorSupport
from dovetail.contract import Contract
from dovetail.engines import SessionOptions, create_engine
from dovetail.errors import PreconditionError, UnsupportedError
from dovetail.fingerprint import ClassFacts, Fingerprint, RuntimeLibrary
from dovetail.gate import run_gate
from dovetail.recipe import Recipe
from dovetail.rules import ModelFacts, rules_for
from dovetail.tensor import TensorSpec
from tests.fakes.onnx_models import conv_net, elementwise, images, load, model_of, save

INPUTS = (TensorSpec("image", "FP32", (-1, 1, 8, 8)),)
OUTPUTS = (TensorSpec("logits", "FP32", (-1, 10)),)
OPERATORS = frozenset({"Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"})
VNNI = frozenset({"avx2", "avx512_vnni"})

Build = Callable[..., BuildOutput]


def planned(engine: str, features: frozenset[str] = frozenset({"avx2"})) -> Mapping[str, Recipe]:
    """Recipes that the rules would plan for an x86 machine with both libraries."""
    runtimes = {"onnxruntime": RuntimeLibrary("1.31.1"), "openvino": RuntimeLibrary("2026.4.1", ("CPU",))}
    machine = Fingerprint(ClassFacts(arch="x86_64", cpu_features=features, runtimes=runtimes))
    rules = rules_for(engine)
    assert rules is not None
    facts = ModelFacts(17, 8, 5000, has_calibration=True, operators=OPERATORS)
    return {recipe.name: recipe for recipe in rules.recipes(machine, facts)}


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def run(recipe: Recipe, *, model: Any = None, calibration: Any = "default", **contract: Any) -> BuildOutput:
        scratch = tmp_path / "out"
        scratch.mkdir(exist_ok=True)
        samples = {"image": images(32)} if calibration == "default" else calibration
        order = BuildInput(
            model=save(model or conv_net(), tmp_path / "source.onnx"),
            recipe=recipe,
            contract=Contract(recipe.engine, recipe.device, recipe.precision, **contract),
            inputs=INPUTS,
            outputs=OUTPUTS,
            facts=ModelFacts(17, 8, 5000, has_calibration=bool(samples), operators=OPERATORS),
            calibration=samples,
            scratch=scratch,
            threads=1,
            report=lambda fraction, text: None,
        )
        return all_backends()[recipe.engine].build(order)

    return run


def outputs_of(built: BuildOutput, recipe: Recipe, feed: Any) -> Any:
    options = SessionOptions(threads=1, precision=recipe.precision, details=built.contract.details)
    return create_engine(recipe.engine).load(built.files, options).run({"image": feed})


def reference(tmp_path: Path, feed: Any) -> Any:
    path = save(conv_net(), tmp_path / "reference.onnx")
    return (
        create_engine("onnxruntime")
        .load({"model.onnx": path}, SessionOptions(threads=1, optimize=False))
        .run({"image": feed})
    )


ALL = [("onnxruntime", name) for name in planned("onnxruntime")] + [("openvino", name) for name in planned("openvino")]


@pytest.mark.parametrize(("engine", "name"), ALL)
def test_every_planned_recipe_builds_and_passes_the_gate(build: Build, tmp_path: Path, engine: str, name: str) -> None:
    recipe = planned(engine)[name]
    feed = images(64, seed=5)

    built = build(recipe)

    report = run_gate(reference(tmp_path, feed), outputs_of(built, recipe, feed), precision=recipe.precision)
    assert report.passed, report.failures
    assert all(path.parent.name == "out" for path in built.files.values())


def test_both_engines_have_a_backend_with_exact_versions() -> None:
    for engine, libraries in (("onnxruntime", {"onnxruntime", "onnx"}), ("openvino", {"openvino", "nncf"})):
        backend = all_backends()[engine]

        assert backend.missing() == ""
        assert libraries <= backend.toolchain().keys()
        assert f"dovetail-{engine}-backend" in backend.toolchain()


def test_fp32_file_has_only_standard_operators_and_no_trace_of_the_builder(build: Build) -> None:
    built = build(planned("onnxruntime")["ort-fp32"])

    model = load(built.files["model.onnx"])
    assert {node.domain for node in model.graph.node} == {""}
    assert [item.domain for item in model.opset_import] == [""]
    assert model.producer_name == ""
    assert built.contract.details["domains"] == ("",)
    assert built.contract.number("opset") == 17


def test_layout_bound_optimisation_is_refused(build: Build) -> None:
    recipe = planned("onnxruntime")["ort-fp32"]

    with pytest.raises(UnsupportedError, match="'all' is bound to a CPU"):
        build(replace(recipe, options={**recipe.options, "optimization_level": "all"}))


def test_static_int8_takes_its_types_from_the_options(build: Build) -> None:
    recipe = planned("onnxruntime")["ort-int8-static-u8s8-rr"]

    reduced = load(build(recipe).files["model.onnx"])
    signed = load(
        build(replace(recipe, options={**recipe.options, "activation_type": "qint8", "reduce_range": False}))
        .files["model.onnx"]
    )  # fmt: skip

    def largest_weight(model: Any) -> int:
        weights = [t for t in model.graph.initializer if t.name.endswith("_quantized") and t.data_type == 3]
        return max(int(np.abs(np.frombuffer(t.raw_data, np.int8).astype(int)).max()) for t in weights)

    def zero_point_types(model: Any) -> set[int]:
        names = {node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"}
        return {t.data_type for t in model.graph.initializer if t.name in names}

    assert largest_weight(reduced) <= 64
    assert largest_weight(signed) > 64
    assert zero_point_types(reduced) == {2}
    assert zero_point_types(signed) == {3}


def test_excluded_nodes_stay_in_float(build: Build) -> None:
    for engine, name in (("onnxruntime", "ort-int8-static-u8s8-rr"), ("openvino", "openvino-int8-ofix")):
        recipe = planned(engine)[name]

        full = sum(path.stat().st_size for path in build(recipe, model=conv_net(channels=64)).files.values())
        partly = replace(recipe, excluded_nodes=("conv2",))
        kept = sum(path.stat().st_size for path in build(partly, model=conv_net(channels=64)).files.values())

        assert kept - full > 64 * 64 * 9 * 2, (engine, full, kept)
        with pytest.raises(UnsupportedError, match="no-such-node"):
            build(replace(recipe, excluded_nodes=("no-such-node",)))


@pytest.mark.parametrize(("engine", "name"), [item for item in ALL if "int8" in item[1] and "dynamic" not in item[1]])
def test_missing_calibration_is_a_precondition_with_what_to_do(build: Build, engine: str, name: str) -> None:
    with pytest.raises(PreconditionError, match="needs calibration samples and the model has none"):
        build(planned(engine)[name], calibration=None)


def test_an_operator_that_openvino_does_not_have_is_unsupported_and_named(build: Build) -> None:
    with pytest.raises(UnsupportedError, match=r"openvino cannot build openvino-fp32: it has no com\.example::Foo"):
        build(planned("openvino")["openvino-fp32"], model=elementwise("Foo", domain="com.example"))


def test_dynamic_int8_needs_no_samples_and_says_so(build: Build) -> None:
    built = build(planned("onnxruntime")["ort-int8-dynamic"], calibration=None)

    assert built.labels == {"calibration": "uncalibrated"}


def test_labels_name_the_calibration(build: Build) -> None:
    recipe = planned("onnxruntime")["ort-int8-static-u8s8-rr"]

    built = build(replace(recipe, options={**recipe.options, "subset_size": 10}))

    assert built.labels == {"calibration": "minmax, 10 samples"}


def test_fp16_weights_halve_the_file_and_keep_the_signature(build: Build) -> None:
    recipes = planned("openvino")
    full = build(recipes["openvino-fp32"]).files["model.bin"].stat().st_size
    built = build(recipes["openvino-fp16"])

    session = create_engine("openvino").load(built.files, SessionOptions(threads=1))
    assert built.files["model.bin"].stat().st_size < 0.6 * full
    assert session.inputs == INPUTS
    assert session.outputs == OUTPUTS


def test_openvino_keeps_the_graphs_own_names_where_a_tensor_has_several(build: Build, tmp_path: Path) -> None:
    model = conv_net()
    model.graph.node[-1].output[0] = "inner"
    model.graph.node.append(helper.make_node("Identity", ["inner"], ["logits"]))

    built = build(planned("openvino")["openvino-fp32"], model=model)

    assert create_engine("openvino").load(built.files, SessionOptions(threads=1)).outputs == OUTPUTS


def test_openvino_contract_names_the_release_that_wrote_it(build: Build) -> None:
    built = build(planned("openvino")["openvino-fp32"])

    installed = all_backends()["openvino"].toolchain()["openvino"]
    assert installed.startswith(built.contract.text("producer_version"))
    assert built.contract.text("producer_version").startswith(built.contract.text("ov_min"))


def test_old_opsets_are_raised_for_per_channel_weights(build: Build, tmp_path: Path) -> None:
    recipe = planned("onnxruntime")["ort-int8-static-u8s8-rr"]
    feed = images(16, seed=5)

    built = build(recipe, model=conv_net(opset=11))

    assert built.contract.number("opset") >= 13
    assert run_gate(reference(tmp_path, feed), outputs_of(built, recipe, feed), precision="int8").passed


def test_graph_that_symbolic_shape_inference_cannot_follow_is_still_quantised(build: Build) -> None:
    recipe = planned("onnxruntime")["ort-int8-dynamic"]
    value = helper.make_tensor_value_info
    weights = conv_net().graph.initializer
    nodes = [*conv_net().graph.node, helper.make_node("Gelu", ["logits"], ["g"], domain="com.microsoft")]
    model = model_of(
        nodes,
        [value("image", 1, ["n", 1, 8, 8])],
        [value("g", 1, ["n", 10])],
        list(weights),
        domains=("com.microsoft",),
    )

    built = build(recipe, model=model)

    assert "com.microsoft" in built.contract.details["domains"]  # type: ignore[operator]


def test_unknown_options_are_refused_by_name(build: Build) -> None:
    static = planned("onnxruntime")["ort-int8-static-u8s8-rr"]
    ir = planned("openvino")["openvino-int8-ofix"]
    for recipe, option, bad in (
        (static, "quantization", "magic"),
        (static, "weight_type", "qint3"),
        (static, "calibration_method", "guess"),
        (ir, "form", "blob"),
        (ir, "calibration_method", "guess"),
    ):
        with pytest.raises(UnsupportedError, match=bad):
            build(replace(recipe, options={**recipe.options, option: bad}))


def test_equal_orders_give_equal_onnx_files(build: Build) -> None:
    for name in ("ort-fp32", "ort-int8-dynamic", "ort-int8-static-u8s8-rr"):
        recipe = planned("onnxruntime")[name]

        first = build(recipe).files["model.onnx"].read_bytes()

        assert build(recipe).files["model.onnx"].read_bytes() == first, name


@pytest.mark.parametrize(
    ("engine", "model", "expected"),
    [
        ("onnxruntime", conv_net(), OperatorSupport(True)),
        ("openvino", conv_net(), OperatorSupport(True)),
        ("onnxruntime", elementwise("Foo", domain="com.example"), OperatorSupport(False, ("com.example::Foo",))),
        ("openvino", elementwise("Foo", domain="com.example"), OperatorSupport(False, ("com.example::Foo",))),
        ("onnxruntime", elementwise("Identity", datatype=8), OperatorSupport(True)),
        ("openvino", elementwise("Identity", datatype=8), OperatorSupport(False, ("text tensor x", "text tensor y"))),
    ],
)
def test_scan_names_what_a_backend_does_not_support(
    tmp_path: Path, engine: str, model: Any, expected: OperatorSupport
) -> None:
    assert all_backends()[engine].scan(save(model, tmp_path / "m.onnx")) == expected
