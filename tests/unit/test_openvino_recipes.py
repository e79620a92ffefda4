# SPDX-License-Identifier: Apache-2.0
"""What OpenVINO offers a machine: by default, as extras, with which contract, and how fast to expect it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dovetail.fingerprint import Fingerprint, RuntimeLibrary
from dovetail.recipe import Recipe
from dovetail.rules import ModelFacts, Reason, Verdict
from dovetail.rules import openvino_rules as ov
from tests.fakes.machines import AVX2, BF16, FACTS, PI5, VNNI, machine

CONVOLUTIONAL = replace(FACTS, parameter_bytes=100 << 20)
TRANSFORMER = ModelFacts(17, 8, 90 << 20, True, frozenset({"MatMul", "Softmax", "LayerNormalization", "Gather"}))
AMX = BF16 | {"amx_bf16", "amx_int8", "amx_tile"}


def _ov(features: frozenset[str] = AVX2, arch: str = "x86_64") -> Fingerprint:
    return machine(arch, features, openvino="2026.4.1")


def _named(where: Fingerprint, facts: ModelFacts = TRANSFORMER) -> dict[str, Recipe]:
    return {recipe.name: recipe for recipe in (*ov.recipes(where, facts), *ov.extra_recipes(where, facts))}


def _worst(name: str, built_for: Fingerprint, where: Fingerprint) -> Reason | None:
    recipe = _named(built_for)[name]
    contract = ov.contract_for(recipe, TRANSFORMER, built_for, built_for)
    found = [reason for rule in ov.RULES if (reason := rule(contract, where)) is not None]
    return max(found, key=lambda reason: reason.verdict, default=None)


@pytest.mark.parametrize(
    ("where", "names"),
    [
        (_ov(AVX2), ["openvino-fp32", "openvino-fp16", "openvino-int8-ofix"]),
        (_ov(VNNI), ["openvino-fp32", "openvino-fp16", "openvino-int8"]),
        (_ov(BF16), ["openvino-fp32", "openvino-fp16", "openvino-bf16", "openvino-int8"]),
        (_ov(PI5, "aarch64"), ["openvino-fp32", "openvino-fp16"]),
        (_ov(PI5 | {"bf16"}, "aarch64"), ["openvino-fp32", "openvino-fp16"]),
        (machine(onnxruntime="1.31.1"), []),
        (_ov(frozenset(), "riscv64"), []),
    ],
)
def test_default_recipes_by_cpu(where: Fingerprint, names: list[str]) -> None:
    assert [recipe.name for recipe in ov.recipes(where, FACTS)] == names


WEIGHTS = ["openvino-int8-weights", "openvino-int4-weights", "openvino-int4-weights-tuned"]


@pytest.mark.parametrize(
    ("where", "facts", "names"),
    [
        (
            _ov(AVX2),
            TRANSFORMER,
            ["openvino-int8-ofix-mean", "openvino-int8-ofix-smooth80", "openvino-int8-ofix-first", *WEIGHTS],
        ),
        (
            _ov(VNNI),
            TRANSFORMER,
            ["openvino-int8-mean", "openvino-int8-smooth80", *WEIGHTS, "openvino-int8-weights-dynamic"],
        ),
        (
            _ov(BF16),
            replace(CONVOLUTIONAL, operators=frozenset({"Conv"})),
            ["openvino-int8-mean", "openvino-int8-mixed", "openvino-int8-bias", "openvino-int8-bf16"],
        ),
        (_ov(PI5, "aarch64"), TRANSFORMER, []),
        (machine(onnxruntime="1.31.1"), TRANSFORMER, []),
        (_ov(VNNI), replace(TRANSFORMER, operators=frozenset({"Relu"})), []),
    ],
)
def test_extra_recipes_by_cpu_and_model(where: Fingerprint, facts: ModelFacts, names: list[str]) -> None:
    assert [recipe.name for recipe in ov.extra_recipes(where, facts)] == names


def test_names_are_unique_and_no_two_recipes_build_the_same() -> None:
    for where in (_ov(AVX2), _ov(VNNI), _ov(AMX)):
        for facts in (TRANSFORMER, CONVOLUTIONAL):
            offered = (*ov.recipes(where, facts), *ov.extra_recipes(where, facts))

            assert len({recipe.name for recipe in offered}) == len(offered)
            assert len({(item.precision, item.device, str(dict(item.options))) for item in offered}) == len(offered)


def test_small_models_are_not_offered_compressed_weights() -> None:
    small = replace(TRANSFORMER, parameter_bytes=1 << 20)

    assert not [recipe for recipe in ov.extra_recipes(_ov(), small) if "weights" in recipe.name]


def test_a_gpu_is_offered_its_own_recipe_only_where_openvino_lists_one() -> None:
    base = _ov(VNNI)
    library = RuntimeLibrary("2026.4.1", ("CPU", "GPU.0", "GPU.1"))
    with_gpu = replace(base, facts=replace(base.facts, runtimes={"openvino": library}))

    recipe = _named(with_gpu)["openvino-gpu-fp16"]

    assert (recipe.device, recipe.options["execution_precision"]) == ("gpu", "f16")
    assert "openvino-gpu-fp16" not in _named(base)
    assert ov.contract_for(recipe, TRANSFORMER, with_gpu, with_gpu).cpu_features == frozenset()


def test_execution_is_pinned_in_every_contract() -> None:
    where = _ov(AMX)

    for name, recipe in _named(where).items():
        contract = ov.contract_for(recipe, TRANSFORMER, where, where)

        assert contract.text("execution_precision") == ("bf16" if name.endswith("bf16") else "f32"), name
        assert contract.number("dynamic_quantization", -1) == (32 if name.endswith("dynamic") else 0), name


def test_bf16_goes_only_where_the_cpu_computes_it() -> None:
    contract = ov.contract_for(_named(_ov(BF16))["openvino-bf16"], TRANSFORMER, _ov(BF16), _ov(BF16))

    elsewhere = _worst("openvino-bf16", _ov(BF16), _ov(VNNI))

    assert contract.cpu_features == {"avx512_bf16"}
    assert contract.arches == {"x86_64"}
    assert contract.precision == "bf16"
    assert _worst("openvino-bf16", _ov(BF16), _ov(AMX)) is None
    assert elsewhere is not None
    assert elsewhere.verdict == Verdict.RECOMPILE
    arm = _worst("openvino-bf16", _ov(BF16), _ov(PI5, "aarch64"))
    assert arm is not None
    assert arm.verdict >= Verdict.RECOMPILE


@pytest.mark.parametrize("name", ["openvino-int8-weights", "openvino-int4-weights"])
def test_compressed_weights_run_on_any_x86_and_never_on_arm(name: str) -> None:
    arm = _worst(name, _ov(VNNI), _ov(PI5, "aarch64"))

    assert _worst(name, _ov(VNNI), _ov(AVX2)) is None
    assert _worst(name, _ov(AVX2), _ov(VNNI)) is None
    assert arm is not None
    assert (arm.rule, arm.verdict) == ("O7", Verdict.UNSUPPORTED)
    assert "ort-int8-dynamic" in arm.way_out


def test_activations_quantised_while_running_need_vnni() -> None:
    elsewhere = _worst("openvino-int8-weights-dynamic", _ov(VNNI), _ov(AVX2))

    assert _worst("openvino-int8-weights-dynamic", _ov(VNNI), _ov(VNNI)) is None
    assert elsewhere is not None
    assert (elsewhere.rule, elsewhere.verdict) == ("O7", Verdict.RECOMPILE)


def test_only_tuned_and_static_recipes_need_samples() -> None:
    needing = {name for name, recipe in _named(_ov(VNNI)).items() if recipe.needs_calibration}

    assert needing == {"openvino-int8", "openvino-int8-mean", "openvino-int8-smooth80", "openvino-int4-weights-tuned"}


def test_int8_of_a_transformer_uses_its_scheme_and_smooths_outliers() -> None:
    transformer = _named(_ov())["openvino-int8-ofix"].options
    other = _named(_ov(), FACTS)["openvino-int8-ofix"].options

    assert (transformer["model_type"], transformer["smooth_quant_alpha"]) == ("transformer", 0.95)
    assert (other["model_type"], other["smooth_quant_alpha"]) == ("none", -1.0)


def test_priors_expect_bf16_between_float_and_int8() -> None:
    where = _ov(AMX)
    expected = {
        name: ov.prior(ov.contract_for(recipe, TRANSFORMER, where, where), where)
        for name, recipe in _named(where).items()
    }

    assert expected["openvino-fp16"] < expected["openvino-bf16"]
    assert expected["openvino-int4-weights"] < expected["openvino-int8-weights"] <= expected["openvino-fp32"]
    assert expected["openvino-int8"] > 2 * expected["openvino-fp32"]
    without_tiles = ov.contract_for(_named(where)["openvino-bf16"], TRANSFORMER, where, where)
    assert ov.prior(without_tiles, _ov(BF16)) < expected["openvino-int8"]
