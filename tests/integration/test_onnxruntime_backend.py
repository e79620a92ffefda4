# SPDX-License-Identifier: Apache-2.0
"""The ONNX Runtime backend in depth: every recipe on a convolutional net and a transformer block; what R6 is for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler_svc.backends import all_backends
from compiler_svc.backends.base import BuildInput, BuildOutput, Samples
from compiler_svc.backends.onnxruntime_weight_only import pack_blocks
from compiler_svc.backends.smooth_quant import smooth, smooth_groups
from dovetail.engines import SessionOptions, create_engine
from dovetail.errors import UnsupportedError
from dovetail.fingerprint import ClassFacts, Fingerprint, RuntimeLibrary
from dovetail.gate import run_gate
from dovetail.probe import measure_sync
from dovetail.recipe import Recipe
from dovetail.rules import ModelFacts, onnxruntime_rules
from dovetail.tensor import TensorSpec
from tests.fakes.onnx_models import conv_net, images, load, model_of, save
from tests.fakes.transformer import WIDTH, outlier_block

MACHINE = Fingerprint(
    ClassFacts(arch="x86_64", cpu_features=frozenset({"avx2"}), runtimes={"onnxruntime": RuntimeLibrary("1.31.1")})
)
ARM = Fingerprint(
    ClassFacts(
        arch="aarch64",
        cpu_features=frozenset({"asimd", "asimdhp"}),
        runtimes={"onnxruntime": RuntimeLibrary("1.31.1")},
    )
)
CONV_FACTS = ModelFacts(17, 8, 5000, has_calibration=True, operators=frozenset({"Conv", "Relu", "Gemm"}))
BLOCK_FACTS = ModelFacts(
    17, 8, 64 << 20, has_calibration=True, operators=frozenset({"Add", "LayerNormalization", "MatMul", "Softmax"})
)


def _recipes(facts: ModelFacts) -> dict[str, Recipe]:
    found = onnxruntime_rules.recipes(MACHINE, facts) + onnxruntime_rules.extra_recipes(MACHINE, facts)
    half = [recipe for recipe in onnxruntime_rules.extra_recipes(ARM, facts) if recipe.precision == "fp16"]
    return {recipe.name: _small(recipe) for recipe in (*found, *half)}


def _small(recipe: Recipe) -> Recipe:
    """The same for the tests' small matrices and few samples."""
    options = dict(recipe.options)
    if "least_weight_elements" in options:
        options.update(least_weight_elements=WIDTH * WIDTH, block_size=16)
    if "histogram_bins" in options:
        options["histogram_bins"] = 256
    return replace(recipe, options=options)


def tokens(count: int, *, seed: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal((count, 8, WIDTH)).astype(np.float32)


CONV = (
    conv_net,
    CONV_FACTS,
    TensorSpec("image", "FP32", (-1, 1, 8, 8)),
    TensorSpec("logits", "FP32", (-1, 10)),
    images,
)
BLOCK = (
    outlier_block,
    BLOCK_FACTS,
    TensorSpec("x", "FP32", (-1, 8, WIDTH)),
    TensorSpec("y", "FP32", (-1, 8, WIDTH)),
    tokens,
)
Build = Callable[..., BuildOutput]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def run(recipe: Recipe, what: Any = CONV, *, model: Any = None, source: Path | None = None) -> BuildOutput:
        make, facts, given, result, samples = what
        scratch = tmp_path / "out"
        scratch.mkdir(exist_ok=True)
        calibration: Samples = {given.name: samples(24)}
        order = BuildInput(
            model=source or save(model if model is not None else make(), tmp_path / "source.onnx"),
            recipe=recipe,
            contract=onnxruntime_rules.contract_for(recipe, facts, MACHINE, MACHINE),
            inputs=(given,),
            outputs=(result,),
            facts=facts,
            calibration=calibration,
            scratch=scratch,
            threads=1,
            report=lambda fraction, text: None,
        )
        return all_backends()["onnxruntime"].build(order)

    return run


def _run(built: BuildOutput, feed: Any) -> Any:
    options = SessionOptions.of_contract(built.contract, threads=1, cpu_features=frozenset({"avx2"}))
    return create_engine("onnxruntime").load(built.files, options).run(feed)


def _reference(model: Any, tmp_path: Path, feed: Any) -> Any:
    path = save(model, tmp_path / "reference.onnx")
    options = SessionOptions(threads=1, optimize=False)
    return create_engine("onnxruntime").load({"model.onnx": path}, options).run(feed)


ALL = [(CONV, name) for name in _recipes(CONV_FACTS)] + [(BLOCK, name) for name in _recipes(BLOCK_FACTS)]
_LOOSE = {"ort-int8-static-u8s8-rr-plain", "ort-int8-static-u8s8-rr-attention", "ort-int4", "ort-int4-a8"}
"""On a random block with outliers these need not pass the gate; they must build and be near."""


@pytest.mark.parametrize(("what", "name"), ALL, ids=[f"{w[0].__name__}-{n}" for w, n in ALL])
def test_every_recipe_builds_twice_to_equal_bytes_and_is_right(
    build: Build, tmp_path: Path, what: Any, name: str
) -> None:
    make, facts, given, result, samples = what
    recipe = _recipes(facts)[name]
    feed = {given.name: samples(16, seed=9)}

    built = build(recipe, what)
    outputs = _run(built, feed)
    digests = {key: hashlib.sha256(path.read_bytes()).hexdigest() for key, path in built.files.items()}
    again = build(recipe, what)

    expected = _reference(make(), tmp_path, feed)
    assert digests == {key: hashlib.sha256(path.read_bytes()).hexdigest() for key, path in again.files.items()}
    if name in _LOOSE:
        error = np.abs(outputs[result.name] - expected[result.name])
        assert error.mean() < 0.1 * np.abs(expected[result.name]).mean()
    else:
        report = run_gate(expected, outputs, precision=recipe.precision)
        assert report.passed, report.failures
    assert not (tmp_path / "out" / "work").exists()


def test_quantisable_nodes_are_what_the_recipe_quantises(build: Build, tmp_path: Path) -> None:
    backend = all_backends()["onnxruntime"]
    recipes = _recipes(BLOCK_FACTS)
    path = save(outlier_block(), tmp_path / "m.onnx")
    static = recipes["ort-int8-static-u8s8-rr"]

    assert backend.quantisable_nodes(path, recipes["ort-fp32"]) == ()
    assert backend.quantisable_nodes(path, static) == ("query", "key", "value", "forward")
    assert backend.quantisable_nodes(path, replace(static, excluded_nodes=("key",))) == ("query", "value", "forward")
    assert backend.quantisable_nodes(path, recipes["ort-int8-static-u8s8-rr-attention"]) == (
        "query", "key", "value", "scores", "mix", "forward",
    )  # fmt: skip
    assert backend.quantisable_nodes(path, recipes["ort-int4"]) == ("query", "key", "value", "forward")
    kept = replace(static, options={**static.options, "keep_first": True, "keep_last": True})
    assert backend.quantisable_nodes(path, kept) == ("key", "value")


@pytest.mark.parametrize("name", ["ort-int8-dynamic", "ort-int8-static-u8s8-rr", "ort-int4"])
def test_excluded_products_keep_their_float_weight(build: Build, name: str) -> None:
    recipe = replace(_recipes(BLOCK_FACTS)[name], excluded_nodes=("key", "forward"))

    built = build(recipe, BLOCK)

    shapes = [list(t.dims) for t in load(built.files["model.onnx"]).graph.initializer if t.data_type == 1]
    assert shapes.count([WIDTH, WIDTH]) == 2


def test_an_excluded_node_that_was_fused_is_excluded_as_what_it_became(build: Build) -> None:
    """MatMul and Add become one Gemm with another name while the graph is prepared."""
    random = np.random.default_rng(1)
    weights = [
        numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("w1", (64, 64)), ("b1", (64,)), ("w2", (64, 10)), ("b2", (10,)))
    ]
    nodes = [
        helper.make_node("Flatten", ["image"], ["f"], name="flat"),
        helper.make_node("MatMul", ["f", "w1"], ["m1"], name="hidden"),
        helper.make_node("Add", ["m1", "b1"], ["a1"], name="hidden_bias"),
        helper.make_node("Relu", ["a1"], ["r1"], name="relu"),
        helper.make_node("MatMul", ["r1", "w2"], ["m2"], name="last"),
        helper.make_node("Add", ["m2", "b2"], ["logits"], name="last_bias"),
    ]
    value = helper.make_tensor_value_info
    model = model_of(nodes, [value("image", 1, ["n", 1, 8, 8])], [value("logits", 1, ["n", 10])], weights)
    recipe = replace(_recipes(CONV_FACTS)["ort-int8-static-u8s8-rr"], excluded_nodes=("hidden",))

    built = build(recipe, model=model)

    floats = [list(t.dims) for t in load(built.files["model.onnx"]).graph.initializer if t.data_type == 1]
    assert [64, 64] in floats
    assert [64, 10] not in floats
    with pytest.raises(UnsupportedError, match="no-such-node"):
        build(replace(recipe, excluded_nodes=("no-such-node",)), model=model)


def test_a_detectors_decoding_stays_in_float(build: Build) -> None:
    model = conv_net()
    model.graph.node[-1].output[0] = "raw"
    model.graph.initializer.append(numpy_helper.from_array(np.full(10, 640, np.float32), "stride"))
    model.graph.node.append(helper.make_node("Mul", ["raw", "stride"], ["logits"], name="decode"))
    recipe = _recipes(CONV_FACTS)["ort-int8-static-u8s8-rr"]

    decoded = load(build(recipe, model=model).files["model.onnx"]).graph
    blanket = replace(recipe, options={**recipe.options, "keep_tail": False})
    everything = load(build(blanket, model=model).files["model.onnx"]).graph

    assert next(node for node in decoded.node if "logits" in node.output).op_type == "Mul"
    assert next(node for node in everything.node if "logits" in node.output).op_type == "DequantizeLinear"


def test_smoothing_changes_no_result_in_float_and_folds_into_the_normalisation(tmp_path: Path) -> None:
    model = outlier_block()
    feed = {"x": tokens(4)}
    expected = _reference(model, tmp_path, feed)["y"]
    groups = smooth_groups(model)
    random = np.random.default_rng(0)
    maxima = {group.tensor: random.uniform(0.1, 30, WIDTH).astype(np.float32) for group in groups}

    done = smooth(model, groups, maxima, 0.7)

    assert [group.nodes for group in groups] == [("query", "key", "value"), ("forward",)]
    assert done == 2
    assert [node.op_type for node in model.graph.node].count("Mul") == 1  # in front of "forward" only
    assert len(model.graph.initializer) == 7  # nothing is left behind
    np.testing.assert_allclose(_reference(model, tmp_path, feed)["y"], expected, rtol=2e-3, atol=2e-4)


def test_smoothing_helps_where_few_channels_hold_the_outliers(build: Build, tmp_path: Path) -> None:
    feed = {"x": tokens(16, seed=9)}
    expected = _reference(outlier_block(), tmp_path, feed)["y"]

    errors = {
        name: float(np.abs(_run(build(_recipes(BLOCK_FACTS)[name], BLOCK), feed)["y"] - expected).mean())
        for name in ("ort-int8-static-u8s8-rr", "ort-int8-static-u8s8-rr-plain")
    }

    assert errors["ort-int8-static-u8s8-rr"] < 0.8 * errors["ort-int8-static-u8s8-rr-plain"]


def test_percentile_calibration_cuts_an_outlier_that_minmax_keeps(build: Build) -> None:
    recipes = _recipes(CONV_FACTS)

    def scale(name: str) -> float:
        recipe = recipes[name]
        if name.endswith("percentile"):
            recipe = replace(recipe, options={**recipe.options, "percentile": 90.0})
        model = load(build(recipe).files["model.onnx"])
        first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear" and "image" in node.input)
        return float(next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == first.input[1]))

    assert scale("ort-int8-static-u8s8-rr-percentile") < 0.9 * scale("ort-int8-static-u8s8-rr")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(64, 24), (50, 7)])
def test_packed_weights_are_those_of_the_librarys_own_kernel(bits: int, shape: tuple[int, int]) -> None:
    from onnxruntime.capi import _pybind_state as library

    weight = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    rows, columns, block = *shape, 32
    blocks = -(-rows // block)
    packed = np.zeros((columns, blocks, block * bits // 8), np.uint8)
    scales = np.zeros((columns, blocks), np.float32)
    zeros = np.zeros((columns, -(-blocks * bits // 8)), np.uint8)
    padded = np.pad(weight, ((0, blocks * block - rows), (0, 0)))
    getattr(library, f"quantize_matmul_{bits}bits")(packed, padded, scales, zeros, block, columns, rows, True)

    ours, our_scales = pack_blocks(weight, bits=bits, block=block)

    np.testing.assert_allclose(our_scales, scales, rtol=1e-6)
    assert ours.shape == packed.shape
    used = -(-rows * bits // 8)  # the filling of the last block means nothing
    assert np.mean((ours != packed).reshape(columns, -1)[:, :used]) < 0.02  # ties may round to the other side


def test_weight_only_says_so_in_contract_and_labels(build: Build) -> None:
    built = build(_recipes(BLOCK_FACTS)["ort-int4-a8"], BLOCK)

    assert built.labels["calibration"] == "uncalibrated"
    assert built.labels["weights"] == "4 matrices, 4 bits in blocks of 16"
    assert built.contract.details["domains"] == ("", "com.microsoft")
    assert built.contract.number("matmulnbits_accuracy_level") == 4
    assert onnxruntime_rules.r9_four_bit_keeps_its_activations(built.contract, MACHINE) is not None


def test_weight_only_refuses_a_model_without_large_matrices(build: Build) -> None:
    recipe = _recipes(BLOCK_FACTS)["ort-int4"]

    with pytest.raises(UnsupportedError, match="no matrix product with a constant weight of at least 9999 elements"):
        build(replace(recipe, options={**recipe.options, "least_weight_elements": 9999}), BLOCK)


@pytest.mark.parametrize("name", ["ort-fp32", "ort-int8-dynamic", "ort-int8-static-u8s8-rr", "ort-int4"])
def test_weights_beside_the_model_stay_beside_it_and_are_found_by_digest_named_files(
    build: Build, tmp_path: Path, name: str
) -> None:
    source = tmp_path / "big" / "model.onnx"
    source.parent.mkdir()
    onnx.save_model(
        outlier_block(), str(source), save_as_external_data=True, location="model.onnx.data", size_threshold=1024
    )
    recipe = _recipes(BLOCK_FACTS)[name]
    feed = {"x": tokens(4)}

    built = build(recipe, BLOCK, source=source)
    by_digest = {}
    for index, (key, path) in enumerate(built.files.items()):
        by_digest[key] = path.rename(tmp_path / f"{index:064x}")
    outputs = _run(replace(built, files=by_digest), feed)

    assert outputs.keys() == {"y"}
    expected = _reference(outlier_block(), tmp_path, feed)["y"]
    assert np.abs(outputs["y"] - expected).mean() < 0.1 * np.abs(expected).mean()
    if name in ("ort-fp32", "ort-int8-static-u8s8-rr"):  # others have no tensor left that is large enough
        assert set(by_digest) == {"model.onnx", "model.onnx.data"}
        assert built.contract.flag("external_data")


def _saturating(operator: str) -> tuple[Any, Any, Any]:
    """A U8S8 file in QDQ form whose pairs of products exceed 16 bits, inputs for it, and the exact result."""
    random = np.random.default_rng(0)
    depth, width = 64, 32
    weight = (random.integers(100, 127, (depth, width)) * np.where(np.arange(width) % 2, 1, -1)).astype(np.int8)
    shape = [1, depth, 4, 4] if operator == "Conv" else [4, depth]
    stored = np.ascontiguousarray(weight.T.reshape(width, depth, 1, 1)) if operator == "Conv" else weight
    constants = {"sx": np.float32(1 / 255), "zx": np.uint8(0), "sw": np.full(width, 0.01, np.float32),
                 "zw": np.zeros(width, np.int8), "sy": np.float32(1), "zy": np.uint8(128), "w": stored}  # fmt: skip
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
        node("DequantizeLinear", ["xq", "sx", "zx"], ["xd"]),
        node("DequantizeLinear", ["w", "sw", "zw"], ["wd"], axis=0 if operator == "Conv" else 1),
        node(operator, ["xd", "wd"], ["yf"]),
        node("QuantizeLinear", ["yf", "sy", "zy"], ["yq"]),
        node("DequantizeLinear", ["yq", "sy", "zy"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    result = [shape[0], width, *shape[2:]]
    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    model = model_of(nodes, [value("x", TensorProto.FLOAT, shape)], [value("y", TensorProto.FLOAT, result)], weights)
    x = random.uniform(0.8, 1, shape).astype(np.float32)
    rounded = np.round(x * 255) / 255
    letters = "bkhw,kn->bnhw" if operator == "Conv" else "bk,kn->bn"
    return model, x, np.einsum(letters, rounded, weight * 0.01)


@pytest.mark.parametrize("operator", ["Conv", "Gemm", "MatMul"])
def test_r6_the_engine_makes_saturating_int8_exact_on_this_cpu(tmp_path: Path, operator: str) -> None:
    model, x, exact = _saturating(operator)
    files = {"model.onnx": save(model, tmp_path / "m.onnx")}
    facts = measure_sync(runtimes=False).facts
    options = SessionOptions(
        threads=1, precision="int8", details={"int8_flavour": "static-u8s8"}, cpu_features=facts.cpu_features
    )

    served = create_engine("onnxruntime").load(files, options).run({"x": x})["y"]
    plain = onnxruntime.InferenceSession(str(files["model.onnx"]), providers=["CPUExecutionProvider"])
    bare = plain.run(None, {"x": x})

    assert np.abs(served - exact).max() < 1
    needed = onnxruntime_rules.needs_x64_quant_precision("int8", "static-u8s8", facts.arch, facts.cpu_features)
    wrong = np.abs(bare[0] - exact).max() > 0.2 * np.abs(exact).max()
    assert wrong == needed  # it is the setting that does it: without, this CPU saturates if and only if it has no VNNI
