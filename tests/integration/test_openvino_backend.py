# SPDX-License-Identifier: Apache-2.0
"""OpenVINO's backend in depth: extra recipes, excluded nodes, external weights, equal bytes for equal orders."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler_svc.backends import openvino_backend
from compiler_svc.backends.base import BuildInput, BuildOutput
from compiler_svc.backends.openvino_calibration import CalibrationFeeds
from dovetail.engines import SessionOptions, create_engine
from dovetail.errors import PreconditionError, UnsupportedError
from dovetail.gate import run_gate
from dovetail.recipe import Recipe
from dovetail.rules import ModelFacts
from dovetail.rules import openvino_rules as rules
from dovetail.tensor import TensorSpec
from tests.fakes.machines import AVX2, BF16, machine
from tests.fakes.onnx_models import conv_net, elementwise, images, model_of, save

WIDTH = 64
INPUTS = (TensorSpec("tokens", "INT64", (-1, 8)),)
OUTPUTS = (TensorSpec("scores", "FP32", (-1, 8, WIDTH)),)
FACTS = ModelFacts(17, 8, 90 << 20, True, frozenset({"MatMul", "Softmax", "LayerNormalization", "Gather"}))
CONV_INPUTS = (TensorSpec("image", "FP32", (-1, 1, 8, 8)),)
CONV_OUTPUTS = (TensorSpec("logits", "FP32", (-1, 10)),)

Build = Callable[..., BuildOutput]


def attention_net() -> Any:
    """Embedding, one attention head, one product without a name, an identity that conversion drops; 64 wide."""
    random = np.random.default_rng(3)

    def weight(name: str, *shape: int) -> Any:
        return numpy_helper.from_array((random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32), name)

    names = ("query", "key", "value", "wide", "narrow")
    weights = [weight("table", 100, WIDTH), *(weight(f"w_{name}", WIDTH, WIDTH) for name in names)]
    weights.append(numpy_helper.from_array(np.array(0.125, np.float32), "scale"))
    make = helper.make_node
    nodes = [
        make("Gather", ["table", "tokens"], ["x"], name="words"),
        *(make("MatMul", ["x", f"w_{name}"], [name], name=name) for name in names[:3]),
        make("Transpose", ["key"], ["keys"], name="turn", perm=[0, 2, 1]),
        make("MatMul", ["query", "keys"], ["raw"], name="attend"),
        make("Mul", ["raw", "scale"], ["attention"], name="calm"),
        make("Softmax", ["attention"], ["shares"], name="softmax"),
        make("MatMul", ["shares", "value"], ["mixed"], name="mix"),
        make("Add", ["mixed", "x"], ["sum"], name="residual"),
        make("MatMul", ["sum", "w_wide"], ["wide"]),
        make("Identity", ["wide"], ["same"], name="nothing"),
        make("Relu", ["same"], ["lit"], name="relu"),
        make("MatMul", ["lit", "w_narrow"], ["scores"], name="head"),
    ]
    value = helper.make_tensor_value_info
    shape = ["batch", 8, WIDTH]
    inputs = [value("tokens", TensorProto.INT64, ["batch", 8])]
    return model_of(nodes, inputs, [value("scores", TensorProto.FLOAT, shape)], weights)


def tokens(count: int = 32, *, seed: int = 1) -> Any:
    return np.random.default_rng(seed).integers(0, 100, (count, 8))


def planned() -> Mapping[str, Recipe]:
    """What the rules offer machines with and without VNNI and bf16, but int8 that only VNNI computes right."""
    found: dict[str, Recipe] = {}
    for features in (AVX2, BF16):
        where = machine(features=features, openvino="2026.4.1")
        found |= {item.name: item for item in (*rules.recipes(where, FACTS), *rules.extra_recipes(where, FACTS))}
    return {name: recipe for name, recipe in found.items() if recipe.options.get("overflow_fix", "enable") == "enable"}


RECIPES = planned()
WEIGHTS = ("openvino-int8-weights", "openvino-int4-weights-tuned")


def order_of(recipe: Recipe, model: Path, scratch: Path, *, calibration: Any = None) -> BuildInput:
    where = machine(features=BF16, openvino="2026.4.1")
    scratch.mkdir(exist_ok=True)
    return BuildInput(
        model=model,
        recipe=recipe,
        contract=rules.contract_for(recipe, FACTS, where, where),
        inputs=INPUTS,
        outputs=OUTPUTS,
        facts=FACTS,
        calibration=calibration,
        scratch=scratch,
        threads=1,
        report=lambda fraction, text: None,
    )


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def run(recipe: Recipe, *, calibration: Any = "default", where: str = "out") -> BuildOutput:
        samples = {"tokens": tokens()} if calibration == "default" else calibration
        model = save(attention_net(), tmp_path / "source.onnx")
        return openvino_backend.build(order_of(recipe, model, tmp_path / where, calibration=samples))

    return run


def outputs_of(built: BuildOutput, feed: Any, **details: Any) -> Any:
    options = SessionOptions(threads=1, details={**built.contract.details, **details})
    return create_engine("openvino").load(built.files, options).run({"tokens": feed})


def reference(tmp_path: Path, feed: Any) -> Any:
    path = save(attention_net(), tmp_path / "reference.onnx")
    engine = create_engine("onnxruntime")
    return engine.load({"model.onnx": path}, SessionOptions(threads=1, optimize=False)).run({"tokens": feed})


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_and_passes_the_gate(build: Build, tmp_path: Path, name: str) -> None:
    recipe = RECIPES[name]
    feed = tokens(64, seed=5)

    built = build(recipe)

    found = outputs_of(built, feed, execution_precision="f32")  # bf16 is not on every machine that tests
    report = run_gate(reference(tmp_path, feed), found, precision=recipe.precision)
    assert report.passed, report.failures


@pytest.mark.parametrize("name", ["openvino-fp16", "openvino-int8-ofix", *WEIGHTS])
def test_equal_orders_give_equal_bytes_without_a_trace_of_the_place(build: Build, tmp_path: Path, name: str) -> None:
    built = build(RECIPES[name])
    again = build(RECIPES[name], where="elsewhere")

    for file, path in built.files.items():
        data = path.read_bytes()
        assert again.files[file].read_bytes() == data, file
        assert str(tmp_path).encode() not in data


def test_compressed_weights_need_no_samples_say_so_and_are_small(build: Build) -> None:
    full = build(RECIPES["openvino-fp32"]).files["model.bin"].stat().st_size
    for name, share in (("openvino-int8-weights", 0.5), ("openvino-int4-weights", 0.4)):
        built = build(RECIPES[name], calibration=None)

        assert built.labels == {"calibration": "uncalibrated"}
        assert built.files["model.bin"].stat().st_size < share * full, name


def test_int4_weights_are_tuned_on_samples_only_when_asked(build: Build) -> None:
    plain = build(RECIPES["openvino-int4-weights"])
    tuned = build(RECIPES["openvino-int4-weights-tuned"], where="tuned")

    assert plain.labels == {"calibration": "uncalibrated"}
    assert tuned.labels == {"calibration": "awq and scale_estimation, 32 samples"}
    assert tuned.files["model.bin"].read_bytes() != plain.files["model.bin"].read_bytes()
    with pytest.raises(PreconditionError, match="needs calibration samples"):
        build(RECIPES["openvino-int4-weights-tuned"], calibration=None)


def test_quantisable_nodes_are_named_in_graph_order(tmp_path: Path) -> None:
    model = save(attention_net(), tmp_path / "m.onnx")
    names = openvino_backend.quantisable_nodes
    static, weights = RECIPES["openvino-int8-ofix"], RECIPES["openvino-int8-weights"]

    heavy = ("words", "query", "key", "value", "attend", "mix", "MatMul_10", "head")
    assert names(model, static) == heavy
    assert names(model, weights) == ("words", "query", "key", "value", "MatMul_10", "head")
    assert names(model, replace(static, excluded_nodes=("key", "head"))) == tuple(
        name for name in heavy if name not in ("key", "head")
    )
    for name in ("openvino-fp32", "openvino-fp16", "openvino-bf16"):
        assert names(model, RECIPES[name]) == ()


def test_quantisable_nodes_of_a_convolutional_net(tmp_path: Path) -> None:
    model = save(conv_net(), tmp_path / "m.onnx")

    assert openvino_backend.quantisable_nodes(model, RECIPES["openvino-int8-ofix"]) == ("conv1", "conv2", "head")


@pytest.mark.parametrize("name", ["openvino-int8-ofix", "openvino-int8-weights"])
def test_with_every_quantisable_node_excluded_nothing_is_quantised(build: Build, tmp_path: Path, name: str) -> None:
    recipe = RECIPES[name]
    nodes = openvino_backend.quantisable_nodes(save(attention_net(), tmp_path / "m.onnx"), recipe)
    feed = tokens(16, seed=5)

    built = build(replace(recipe, excluded_nodes=nodes))

    report = run_gate(reference(tmp_path, feed), outputs_of(built, feed), precision="fp32")
    assert report.passed, report.failures
    assert "excluded_but_folded" not in built.labels


@pytest.mark.parametrize("name", ["openvino-int8-ofix", "openvino-int8-weights"])
def test_an_excluded_node_that_conversion_dropped_is_noted_and_no_failure(build: Build, name: str) -> None:
    built = build(replace(RECIPES[name], excluded_nodes=("key", "nothing")))

    assert built.labels["excluded_but_folded"] == "nothing"


def test_a_node_without_a_name_is_excluded_by_the_name_it_is_given(build: Build) -> None:
    full = build(RECIPES["openvino-int8-weights"]).files["model.bin"].stat().st_size
    kept = build(replace(RECIPES["openvino-int8-weights"], excluded_nodes=("MatMul_10",))).files["model.bin"]

    assert kept.stat().st_size - full > WIDTH * WIDTH * 2


def test_unknown_nodes_and_options_are_refused_by_name(build: Build) -> None:
    weights, int4 = RECIPES["openvino-int8-weights"], RECIPES["openvino-int4-weights"]
    with pytest.raises(UnsupportedError, match="'no-such-node', which the model does not have"):
        build(replace(weights, excluded_nodes=("no-such-node",)))
    for recipe, option, bad in (
        (weights, "mode", "int2_sym"),
        (weights, "quantization", "magic"),
        (weights, "execution_precision", "f64"),
        (int4, "backup_mode", "int1"),
        (RECIPES["openvino-int8-ofix"], "preset", "swift"),
        (RECIPES["openvino-int8-ofix"], "overflow_fix", "perhaps"),
    ):
        with pytest.raises(UnsupportedError, match=f"{option} '{bad}'"):
            build(replace(recipe, options={**recipe.options, option: bad}))


@pytest.mark.parametrize("name", ["openvino-fp32", "openvino-int8-ofix", "openvino-int8-weights"])
def test_weights_beside_the_model_give_the_same_artifact(build: Build, tmp_path: Path, name: str) -> None:
    apart = tmp_path / "apart" / "model.onnx"
    apart.parent.mkdir()
    onnx.save(attention_net(), str(apart), save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    order = order_of(RECIPES[name], apart, tmp_path / "external", calibration={"tokens": tokens()})
    excluding = replace(order, recipe=replace(RECIPES[name], excluded_nodes=("key",)))

    built = openvino_backend.build(excluding)

    inside = build(excluding.recipe)
    assert apart.stat().st_size < 8192
    assert (apart.parent / "model.onnx.data").stat().st_size > 4 * WIDTH * WIDTH * 4
    assert built.files["model.bin"].read_bytes() == inside.files["model.bin"].read_bytes()
    assert openvino_backend.scan(apart).level == "supported"
    assert len(openvino_backend.quantisable_nodes(apart, RECIPES["openvino-int8-ofix"])) == 8


def test_calibration_feeds_are_views_and_can_be_walked_again() -> None:
    samples = {"tokens": tokens(10)}
    feeds = CalibrationFeeds(samples, INPUTS, limit=4)

    first, second = list(feeds), list(feeds)

    assert len(feeds) == len(first) == len(second) == 4
    assert all(np.array_equal(a["tokens"], b["tokens"]) for a, b in zip(first, second, strict=True))
    assert all(np.shares_memory(feed["tokens"], samples["tokens"]) for feed in first)


def test_bias_correction_and_range_methods_change_the_bytes(tmp_path: Path) -> None:
    """Options reach NNCF: each variant of a convolutional net's int8 is another file."""
    model = save(conv_net(channels=16), tmp_path / "m.onnx")
    base = RECIPES["openvino-int8-ofix"]
    found = set()
    changes: tuple[dict[str, Any], ...] = (
        {},
        {"calibration_method": "mean_minmax"},
        {"calibration_method": "quantile"},
        {"calibration_method": "median_minmax"},
        {"bias_correction": "accurate"},
        {"bias_correction": "fast"},
        {"overflow_fix": "disable"},
        {"preset": "mixed"},
    )
    for index, change in enumerate(changes):
        recipe = replace(base, options={**base.options, "model_type": "none", **change})
        order = order_of(recipe, model, tmp_path / str(index), calibration={"image": images(32)})
        built = openvino_backend.build(replace(order, inputs=CONV_INPUTS, outputs=CONV_OUTPUTS))
        found.add(built.files["model.bin"].read_bytes() + built.files["model.xml"].read_bytes().split(b"<rt_info>")[0])

    assert len(found) == len(changes)


def test_smoothing_of_outliers_follows_its_option(build: Build) -> None:
    base = RECIPES["openvino-int8-ofix"]
    off = replace(base, options={**base.options, "smooth_quant_alpha": -1.0})

    assert build(base).files["model.bin"].read_bytes() != build(off, where="off").files["model.bin"].read_bytes()


def test_an_operator_that_cannot_be_converted_with_these_attributes_is_named(tmp_path: Path) -> None:
    support = openvino_backend.scan(save(elementwise("Bernoulli"), tmp_path / "m.onnx"))

    assert (support.level, support.unsupported) == ("unsupported", ("Bernoulli (opset 17)",))


QUANTISE = """
import sys
from pathlib import Path
from compiler_svc.backends import openvino_backend
from tests.integration.test_openvino_backend import RECIPES, attention_net, order_of, tokens
from tests.fakes.onnx_models import save

folder = Path(sys.argv[1])
model = save(attention_net(), folder / "m.onnx")
for name in ("openvino-int8-ofix", "openvino-int8-weights"):
    openvino_backend.build(order_of(RECIPES[name], model, folder / name, calibration={"tokens": tokens()}))
assert "torch" not in sys.modules
import torch
assert torch.__version__
"""


def test_quantising_for_openvino_does_not_load_torch(tmp_path: Path) -> None:
    """It is in this environment, and nncf would import it for nothing."""
    subprocess.run([sys.executable, "-c", QUANTISE, str(tmp_path)], check=True)
