# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime's rules, one table each: what fits, what does not, and the way out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dovetail.fingerprint import Fingerprint, RuntimeLibrary
from dovetail.rules import ModelFacts, Verdict
from dovetail.rules import machine as engine_independent
from dovetail.rules import onnxruntime_rules as ort
from dovetail.rules.onnxruntime_rules import needs_x64_quant_precision
from tests.fakes.machines import AVX2, FACTS, PI4, PI5, VNNI, contract, machine, nvidia

OPTIMAL, SUBOPTIMAL, RECOMPILE, UNSUPPORTED = (
    Verdict.OPTIMAL,
    Verdict.SUBOPTIMAL,
    Verdict.RECOMPILE,
    Verdict.UNSUPPORTED,
)
AVX2_ONLY, WITH_VNNI = machine(features=AVX2), machine(features=VNNI)
RASPBERRY_4, RASPBERRY_5 = machine("aarch64", PI4), machine("aarch64", PI5)


def _ort(version: str, features: frozenset[str] = AVX2, arch: str = "x86_64") -> Fingerprint:
    return machine(arch, features, onnxruntime=version)


def _verdict(rule: Any, what: Any, where: Fingerprint) -> Verdict:
    reason = rule(what, where)
    return OPTIMAL if reason is None else reason.verdict


@pytest.mark.parametrize(
    ("version", "opset", "ir_version", "verdict"),
    [
        ("1.31.1", 26, 13, OPTIMAL),
        ("1.31.1", 27, 13, UNSUPPORTED),
        ("1.31.1", 21, 14, UNSUPPORTED),
        ("1.31.1", 6, 3, SUBOPTIMAL),
        ("1.31.1", 5, 3, UNSUPPORTED),
        ("1.31.1", 21, 2, UNSUPPORTED),
        ("1.20.1", 21, 10, OPTIMAL),
        ("1.20.1", 22, 10, UNSUPPORTED),
        ("1.17.3", 20, 9, OPTIMAL),
        ("1.17.3", 21, 9, UNSUPPORTED),
        ("1.14.0", 18, 9, UNSUPPORTED),
        ("1.23.0", 21, 10, OPTIMAL),
        ("1.23.0", 23, 11, SUBOPTIMAL),  # between known releases: unverified
        ("1.23.0", 27, 11, UNSUPPORTED),
        ("1.40.0", 27, 14, SUBOPTIMAL),  # newer than what is known
        ("1.12.0", 17, 8, SUBOPTIMAL),  # older than what is known
        ("strange", 27, 14, OPTIMAL),  # no claim without a version
    ],
)
def test_r1_opset_and_ir(version: str, opset: int, ir_version: int, verdict: Verdict) -> None:
    what = contract(opset=opset, ir_version=ir_version)

    assert _verdict(ort.r1_opset_and_ir_fit_the_runtime, what, _ort(version)) == verdict


@pytest.mark.parametrize(
    ("details", "version", "verdict"),
    [
        ({"domains": ("",), "optimization_level": "basic"}, "1.22.0", OPTIMAL),
        ({"domains": ("", "com.microsoft.nchwc")}, "1.31.1", UNSUPPORTED),
        ({"domains": ("",), "optimization_level": "all"}, "1.31.1", UNSUPPORTED),
        ({"domains": ("", "com.microsoft"), "producer_version": "1.31.1"}, "1.31.1", OPTIMAL),
        ({"domains": ("", "com.microsoft"), "producer_version": "1.31.1"}, "1.30.0", RECOMPILE),
        ({"optimization_level": "extended", "producer_version": "1.31.1"}, "1.30.0", RECOMPILE),
    ],
)
def test_r2_layout_bound_operators(details: dict[str, Any], version: str, verdict: Verdict) -> None:
    assert _verdict(ort.r2_no_layout_bound_operators, contract(**details), _ort(version)) == verdict


def test_r3_prepacked_weights_are_never_loaded() -> None:
    assert _verdict(ort.r3_no_prepacked_weights, contract(prepacked=True), AVX2_ONLY) == UNSUPPORTED
    assert _verdict(ort.r3_no_prepacked_weights, contract(), AVX2_ONLY) == OPTIMAL


@pytest.mark.parametrize(
    ("version", "written", "target", "verdict"),
    [
        ("1.31.1", 5, "amd64", OPTIMAL),
        ("1.31.1", 5, "arm", RECOMPILE),
        ("1.31.1", 4, "", SUBOPTIMAL),
        ("1.31.1", 6, "", UNSUPPORTED),
        ("1.12.0", 5, "", UNSUPPORTED),
    ],
)
def test_r4_ort_format(version: str, written: int, target: str, verdict: Verdict) -> None:
    what = contract(file_format="ort", ort_format_version=written, ort_target=target)

    assert _verdict(ort.r4_ort_format_is_read, what, _ort(version)) == verdict
    assert _verdict(ort.r4_ort_format_is_read, contract(file_format="onnx"), _ort(version)) == OPTIMAL


@pytest.mark.parametrize(
    ("flavour", "where", "verdict"),
    [
        ("static-u8s8", WITH_VNNI, OPTIMAL),
        ("static-u8s8", machine(features=AVX2 | {"avx_vnni"}), OPTIMAL),
        ("static-u8s8", AVX2_ONLY, RECOMPILE),
        ("static-u8s8-rr", AVX2_ONLY, OPTIMAL),
        ("static-u8s8-rr", WITH_VNNI, SUBOPTIMAL),
        ("static-s8s8", RASPBERRY_4, OPTIMAL),
        ("static-s8s8", RASPBERRY_5, OPTIMAL),
        ("static-s8s8", WITH_VNNI, SUBOPTIMAL),
        ("static-u8s8", RASPBERRY_5, SUBOPTIMAL),
        ("dynamic-u8u8", AVX2_ONLY, OPTIMAL),
        ("", AVX2_ONLY, SUBOPTIMAL),
        ("static-s8s8", machine("riscv64", frozenset()), OPTIMAL),
    ],
)
def test_r5_int8_flavour(flavour: str, where: Fingerprint, verdict: Verdict) -> None:
    what = contract(precision="int8", int8_flavour=flavour)

    assert _verdict(ort.r5_int8_flavour_fits_the_isa, what, where) == verdict


def test_r5_names_the_flavour_to_ask_for() -> None:
    reason = ort.r5_int8_flavour_fits_the_isa(contract(precision="int8", int8_flavour="static-u8s8"), AVX2_ONLY)

    assert reason is not None
    assert "int8 without VNNI: ask for the reduced-range flavour ort-int8-static-u8s8-rr" in str(reason)


@pytest.mark.parametrize(
    ("precision", "flavour", "arch", "features", "needed"),
    [
        ("int8", "", "x86_64", AVX2, True),
        ("int8", "static-u8s8", "amd64", AVX2, True),
        ("int8", "static-u8s8-rr", "x86_64", AVX2, False),
        ("int8", "dynamic-u8u8", "x86_64", AVX2, False),
        ("int8", "static-u8s8", "x86_64", VNNI, False),
        ("int8", "static-s8s8", "aarch64", PI5, False),
        ("fp32", "", "x86_64", AVX2, False),
    ],
)
def test_r6_exact_arithmetic_is_asked_for_only_where_int8_saturates(
    precision: str, flavour: str, arch: str, features: frozenset[str], needed: bool
) -> None:
    assert needs_x64_quant_precision(precision, flavour, arch, features) is needed


@pytest.mark.parametrize(
    ("flavour", "where", "verdict"),
    [
        ("", AVX2_ONLY, SUBOPTIMAL),
        ("static-s8s8", AVX2_ONLY, SUBOPTIMAL),
        ("static-u8s8", AVX2_ONLY, OPTIMAL),  # refused by R5 already
        ("", WITH_VNNI, OPTIMAL),
    ],
)
def test_r6_says_when_the_exact_path_costs_time(flavour: str, where: Fingerprint, verdict: Verdict) -> None:
    what = contract(precision="int8", int8_flavour=flavour)

    assert _verdict(ort.r6_exact_int8_without_vnni, what, where) == verdict


@pytest.mark.parametrize(
    ("precision", "where", "verdict"),
    [
        ("int8", _ort("1.31.1"), OPTIMAL),
        ("int8", _ort("1.30.0"), SUBOPTIMAL),
        ("fp32", _ort("1.30.0"), OPTIMAL),
        ("int8", _ort("1.23.1", VNNI), UNSUPPORTED),
        ("int8", _ort("1.23.1", AVX2), SUBOPTIMAL),
        ("fp16", _ort("1.29.0", PI5, "aarch64"), UNSUPPORTED),
        ("fp16", _ort("1.29.0"), SUBOPTIMAL),
        ("fp16", _ort("1.31.0"), OPTIMAL),
    ],
)
def test_r7_releases_are_validated_one_by_one(precision: str, where: Fingerprint, verdict: Verdict) -> None:
    what = contract(precision=precision, validated_minors=("1.31",))

    assert _verdict(ort.r7_runtime_release_is_validated, what, where) == verdict


@pytest.mark.parametrize(
    ("precision", "device", "where", "verdict"),
    [
        ("fp16", "cpu", AVX2_ONLY, SUBOPTIMAL),
        ("fp16", "cpu", RASPBERRY_4, SUBOPTIMAL),
        ("fp16", "cpu", RASPBERRY_5, SUBOPTIMAL),
        ("fp16", "cuda", AVX2_ONLY, OPTIMAL),
        ("fp32", "cpu", AVX2_ONLY, OPTIMAL),
    ],
)
def test_r8_fp16_on_cpu(precision: str, device: str, where: Fingerprint, verdict: Verdict) -> None:
    what = contract(precision=precision, device=device)

    assert _verdict(ort.r8_fp16_only_where_it_is_native, what, where) == verdict


def test_r9_four_bit_with_int8_activations_is_doubted() -> None:
    rule = ort.r9_four_bit_keeps_its_activations

    assert _verdict(rule, contract(precision="int4", matmulnbits_accuracy_level=4), AVX2_ONLY) == SUBOPTIMAL
    assert _verdict(rule, contract(precision="int4", matmulnbits_accuracy_level=1), AVX2_ONLY) == OPTIMAL
    assert _verdict(rule, contract(precision="int4"), AVX2_ONLY) == OPTIMAL


@pytest.mark.parametrize(
    ("validated", "where", "verdict"),
    [
        (("armv8.2+dotprod",), RASPBERRY_5, OPTIMAL),
        (("armv8.2+dotprod",), RASPBERRY_4, SUBOPTIMAL),
        (("armv8.2+dotprod",), AVX2_ONLY, OPTIMAL),
        ((), RASPBERRY_4, OPTIMAL),
    ],
)
def test_r10_arm_results_are_validated_per_isa(
    validated: tuple[str, ...], where: Fingerprint, verdict: Verdict
) -> None:
    assert _verdict(ort.r10_arm_numerics_are_validated, contract(validated_isa=validated), where) == verdict


def _with_provider(compatibility: str) -> Fingerprint:
    base = machine()
    library = RuntimeLibrary("1.31.1", ("QNNExecutionProvider",), {"compatibility.QNNExecutionProvider": compatibility})
    return replace(base, facts=replace(base.facts, runtimes={"onnxruntime": library}))


@pytest.mark.parametrize(
    ("provider", "where", "verdict"),
    [
        ("QNNExecutionProvider", _with_provider("v73"), OPTIMAL),
        ("QNNExecutionProvider", _with_provider("v68"), RECOMPILE),
        ("QNNExecutionProvider", machine(), UNSUPPORTED),
        ("CPUExecutionProvider", machine(), OPTIMAL),
        ("", machine(), OPTIMAL),
    ],
)
def test_r11_compiled_nodes(provider: str, where: Fingerprint, verdict: Verdict) -> None:
    what = contract(provider=provider, provider_compatibility="v73")

    assert _verdict(ort.r11_compiled_nodes_fit_the_provider, what, where) == verdict


@pytest.mark.parametrize(
    ("where", "verdict"),
    [
        (machine(gpu=nvidia("8.9"), onnxruntime="1.31.1", tensorrt="11.4.1.5"), OPTIMAL),
        (machine(gpu=nvidia("8.6"), onnxruntime="1.31.1", tensorrt="11.4.1.5"), RECOMPILE),
        (machine(gpu=nvidia("8.9"), onnxruntime="1.31.1", tensorrt="11.4.1.6"), RECOMPILE),
        (machine(gpu=nvidia("8.9"), onnxruntime="1.26.0", tensorrt="11.4.1.5"), UNSUPPORTED),
        (machine(onnxruntime="1.31.1"), RECOMPILE),
    ],
)
def test_r12_engine_cache(where: Fingerprint, verdict: Verdict) -> None:
    what = contract(ep_cache=("onnxruntime 1.31.1", "tensorrt 11.4.1.5", "cc 8.9"))

    assert _verdict(ort.r12_engine_cache_is_of_this_machine, what, where) == verdict
    assert _verdict(ort.r12_engine_cache_is_of_this_machine, contract(), where) == OPTIMAL


@pytest.mark.parametrize(
    ("where", "names"),
    [
        (AVX2_ONLY, ["ort-fp32", "ort-int8-dynamic", "ort-int8-static-u8s8-rr"]),
        (WITH_VNNI, ["ort-fp32", "ort-int8-dynamic", "ort-int8-static-u8s8"]),
        (RASPBERRY_4, ["ort-fp32", "ort-int8-dynamic", "ort-int8-static-s8s8"]),
        (machine("riscv64", frozenset()), ["ort-fp32", "ort-int8-dynamic"]),
        (machine(openvino="2026.4.1"), []),
    ],
)
def test_recipes_hold_exactly_one_static_flavour_chosen_by_cpu_flag(where: Fingerprint, names: list[str]) -> None:
    assert [recipe.name for recipe in ort.recipes(where, FACTS)] == names


def test_r14_a_model_without_heavy_operators_gets_no_int8() -> None:
    light = replace(FACTS, operators=frozenset({"Add", "Relu"}))

    assert [recipe.name for recipe in ort.recipes(AVX2_ONLY, light)] == ["ort-fp32"]


def test_recipe_options_say_everything_that_changes_the_bytes() -> None:
    static = ort.recipes(AVX2_ONLY, FACTS)[2]
    arm = ort.recipes(RASPBERRY_5, FACTS)[2]

    assert static.needs_calibration
    assert static.options["reduce_range"] is True
    assert (static.options["activation_type"], static.options["weight_type"]) == ("quint8", "qint8")
    assert arm.options["reduce_range"] is False
    assert (arm.options["activation_type"], arm.options["activation_symmetric"]) == ("qint8", True)


def test_portable_contracts_run_anywhere_and_static_int8_on_its_architecture() -> None:
    fp32, dynamic, static = (
        ort.contract_for(recipe, FACTS, AVX2_ONLY, AVX2_ONLY) for recipe in ort.recipes(AVX2_ONLY, FACTS)
    )

    assert fp32.arches == dynamic.arches == frozenset()
    assert engine_independent.arch_fits(fp32, RASPBERRY_4) is None
    assert static.arches == {"x86_64"}
    assert static.details["validated_minors"] == ("1.31",)
    assert (fp32.number("opset"), fp32.number("ir_version")) == (21, 10)


def test_prior_prefers_static_int8_most_where_the_cpu_has_dot_products() -> None:
    static = contract(precision="int8", int8_flavour="static-u8s8")

    assert ort.prior(contract(), AVX2_ONLY) == 1.0
    assert ort.prior(static, WITH_VNNI) > ort.prior(static, AVX2_ONLY) > 1.0
    assert ort.prior(contract(precision="fp16"), AVX2_ONLY) < 1.0


TRANSFORMER = ModelFacts(17, 8, 90 << 20, True, frozenset({"Add", "LayerNormalization", "MatMul", "Softmax"}))


def _names(found: tuple[Any, ...]) -> list[str]:
    return [recipe.name for recipe in found]


def test_default_recipes_are_few_and_the_others_are_extra() -> None:
    assert _names(ort.recipes(AVX2_ONLY, FACTS)) == ["ort-fp32", "ort-int8-dynamic", "ort-int8-static-u8s8-rr"]
    assert _names(ort.extra_recipes(AVX2_ONLY, FACTS)) == [
        "ort-int8-static-u8s8-rr-entropy",
        "ort-int8-static-u8s8-rr-percentile",
    ]
    assert _names(ort.extra_recipes(WITH_VNNI, TRANSFORMER)) == [
        "ort-int8-static-u8s8-plain",
        "ort-int8-static-u8s8-attention",
        "ort-int8-weights",
        "ort-int4",
        "ort-int4-a8",
    ]
    assert ort.extra_recipes(machine(openvino="2026.4.1"), TRANSFORMER) == ()


def test_transformers_are_quantised_less_and_smoothed() -> None:
    net, encoder = (ort.recipes(AVX2_ONLY, facts)[-1].options for facts in (FACTS, TRANSFORMER))

    assert (net["quantised_operators"], net["smooth_quant_alpha"], net["constant_weights_only"]) == ("all", 0.0, False)
    assert encoder["quantised_operators"] == "Conv,ConvTranspose,Gemm,MatMul"
    assert encoder["smooth_quant_alpha"] == 0.7
    assert encoder["constant_weights_only"] is True


def test_fp16_is_never_a_default_and_offered_only_where_arm_computes_in_it() -> None:
    for where, offered in ((RASPBERRY_5, True), (RASPBERRY_4, False), (WITH_VNNI, False)):
        assert "ort-fp16" not in _names(ort.recipes(where, FACTS))
        assert ("ort-fp16" in _names(ort.extra_recipes(where, FACTS))) is offered


def test_small_models_and_models_without_products_get_no_weight_only_recipe() -> None:
    small = replace(TRANSFORMER, parameter_bytes=1 << 20)

    assert "ort-int4" not in _names(ort.extra_recipes(AVX2_ONLY, small))
    assert "ort-int4" not in _names(ort.extra_recipes(AVX2_ONLY, replace(FACTS, parameter_bytes=1 << 30)))


@pytest.mark.parametrize(
    ("name", "version", "verdict"),
    [
        ("ort-int4", "1.31.1", OPTIMAL),
        ("ort-int4", "1.16.3", UNSUPPORTED),
        ("ort-int8-weights", "1.23.0", OPTIMAL),
        ("ort-int8-weights", "1.22.0", UNSUPPORTED),
    ],
)
def test_r9_packed_weights_need_a_runtime_that_unpacks_them(name: str, version: str, verdict: Verdict) -> None:
    recipe = next(item for item in ort.extra_recipes(AVX2_ONLY, TRANSFORMER) if item.name == name)
    what = ort.contract_for(recipe, TRANSFORMER, AVX2_ONLY, AVX2_ONLY)

    assert what.details["domains"] == ("", "com.microsoft")
    assert _verdict(ort.r9_weight_only_operators_are_known, what, _ort(version)) == verdict
    assert _verdict(ort.r5_int8_flavour_fits_the_isa, what, AVX2_ONLY) == OPTIMAL
    assert needs_x64_quant_precision(what.precision, what.text("int8_flavour"), "x86_64", AVX2) is False


@pytest.mark.parametrize(("version", "verdict"), [("1.31.1", OPTIMAL), ("1.23.2", UNSUPPORTED)])
def test_r1_weights_beside_the_graph_need_a_runtime_that_takes_them(version: str, verdict: Verdict) -> None:
    rule = ort.r1_weights_beside_the_graph_are_read

    assert _verdict(rule, contract(external_data=True), _ort(version)) == verdict
    assert _verdict(rule, contract(), _ort(version)) == OPTIMAL


def test_r9_accuracy_level_is_in_the_contract() -> None:
    found = {item.name: item for item in ort.extra_recipes(AVX2_ONLY, TRANSFORMER)}
    exact, quick = (
        ort.contract_for(found[name], TRANSFORMER, AVX2_ONLY, AVX2_ONLY) for name in ("ort-int4", "ort-int4-a8")
    )

    assert _verdict(ort.r9_four_bit_keeps_its_activations, exact, AVX2_ONLY) == OPTIMAL
    assert _verdict(ort.r9_four_bit_keeps_its_activations, quick, AVX2_ONLY) == SUBOPTIMAL
