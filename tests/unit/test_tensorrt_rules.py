# SPDX-License-Identifier: Apache-2.0
"""TensorRT's rules, one table each; no GPU is needed, fingerprints are values."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest

from dovetail.errors import InvalidInputError
from dovetail.fingerprint import Accelerator, Fingerprint
from dovetail.rules import Verdict
from dovetail.rules import tensorrt_rules as trt
from dovetail.rules.tensorrt_plan import PlanHeader, parse_plan_header, parse_profile
from dovetail.rules.tensorrt_recipes import cuda_of
from tests.fakes.machines import AVX2, FACTS, PI5, contract, machine, nvidia

OPTIMAL, SUBOPTIMAL, RECOMPILE, UNSUPPORTED = tuple(Verdict)
L4 = nvidia("8.9")


def _gpu(device: Accelerator | None = L4, version: str = "10.13.2.6", l4t: str = "", **details: str) -> Fingerprint:
    facts = {"l4t": l4t, "board": "nvidia,p3701"} if l4t else {}
    arch, features = ("aarch64", PI5) if l4t else ("x86_64", AVX2)
    return machine(arch, features, gpu=device, class_facts=facts, details={"tensorrt": details}, tensorrt=version)


def _verdict(rule: Any, where: Fingerprint, **details: Any) -> Verdict:
    reason = rule(contract("tensorrt", "fp16", "cuda", **details), where)
    return OPTIMAL if reason is None else reason.verdict


def test_a_machine_without_a_gpu_is_told_so() -> None:
    assert _verdict(trt.gpu_is_there, _gpu(None)) == UNSUPPORTED
    assert _verdict(trt.gpu_is_there, _gpu()) == OPTIMAL


@pytest.mark.parametrize(
    ("built", "here", "compatible", "verdict"),
    [
        ("10.13.2.6", "10.13.2.6", False, OPTIMAL),
        ("10.13.2.6", "10.13.2.7", False, RECOMPILE),
        ("10.13.2", "10.13.2", False, RECOMPILE),  # three numbers are not enough
        ("10.13.2.6", "10.13.3.9", True, OPTIMAL),  # T2's business
        ("", "10.13.2.6", False, RECOMPILE),
    ],
)
def test_t1_all_four_numbers(built: str, here: str, compatible: bool, verdict: Verdict) -> None:
    where = _gpu(version=here)

    assert _verdict(trt.t1_runtime_is_the_builders, where, trt=built, version_compatible=compatible) == verdict


@pytest.mark.parametrize(
    ("built", "here", "verdict"),
    [
        ("10.13.2.6", "10.13.2.6", OPTIMAL),
        ("10.13.2.6", "10.14.1.48", SUBOPTIMAL),
        ("10.13.2.6", "11.1.0.1", SUBOPTIMAL),
        ("8.6.1.6", "10.3.0.26", SUBOPTIMAL),
        ("8.6.1.6", "11.1.0.1", RECOMPILE),
        ("10.14.1.48", "10.13.2.6", RECOMPILE),
        ("11.1.0.1", "10.13.2.6", RECOMPILE),
        ("", "10.13.2.6", RECOMPILE),
    ],
)
def test_t2_version_compatible_plans_go_forward_only(built: str, here: str, verdict: Verdict) -> None:
    rule = trt.t2_version_compatible_plan_goes_forward

    assert _verdict(rule, _gpu(version=here), trt=built, version_compatible=True) == verdict
    assert _verdict(rule, _gpu(version=here), trt=built) == OPTIMAL


@pytest.mark.parametrize(
    ("details", "node", "verdict"),
    [
        ({}, {}, UNSUPPORTED),
        ({}, {"host_code_allowed": "true"}, OPTIMAL),
        ({"lean_runtime_excluded": True}, {"host_code_allowed": "true"}, UNSUPPORTED),
        ({"lean_runtime_excluded": True}, {"lean": "10.3.0.26,10.13.2.6"}, OPTIMAL),
    ],
)
def test_t3_lean_runtime(details: dict[str, Any], node: dict[str, str], verdict: Verdict) -> None:
    where = _gpu(version="10.14.1.48", **node)
    rule = trt.t3_lean_runtime_is_at_hand

    assert _verdict(rule, where, trt="10.13.2.6", version_compatible=True, **details) == verdict
    assert _verdict(rule, where, trt="10.13.2.6", **details) == OPTIMAL


def test_t3_an_embedded_lean_runtime_needs_leave_even_on_the_builders_own_version() -> None:
    rule, same = trt.t3_lean_runtime_is_at_hand, {"trt": "10.13.2.6", "version_compatible": True}

    assert _verdict(rule, _gpu(), **same) == UNSUPPORTED
    assert _verdict(rule, _gpu(host_code_allowed="true"), **same) == OPTIMAL
    assert _verdict(rule, _gpu(), **same, lean_runtime_excluded=True) == OPTIMAL


def test_t3_an_installed_lean_package_counts() -> None:
    where = machine(gpu=L4, tensorrt="11.4.1.5", tensorrt_lean="10.13.2.6")
    plan = {"trt": "10.13.2.6", "version_compatible": True, "lean_runtime_excluded": True}

    assert _verdict(trt.t3_lean_runtime_is_at_hand, where, **plan) == OPTIMAL
    assert _verdict(trt.t3_lean_runtime_is_at_hand, where, **{**plan, "trt": "10.3.0.26"}) == UNSUPPORTED


@pytest.mark.parametrize(
    ("device", "details", "verdict"),
    [
        (L4, {"compute_capability": "8.9", "gpu_product": "NVIDIA L4"}, OPTIMAL),
        (L4, {"compute_capability": "8.6", "gpu_product": "NVIDIA L4"}, RECOMPILE),
        (L4, {"compute_capability": "8.9", "gpu_product": "GeForce RTX 4090"}, SUBOPTIMAL),
        (L4, {}, RECOMPILE),
        (L4, {"compute_capability": "8.9", "hardware_level": "same_compute_capability"}, OPTIMAL),
        (L4, {"compute_capability": "8.6", "hardware_level": "same_compute_capability"}, RECOMPILE),
        (L4, {"compute_capability": "8.0", "hardware_level": "ampere_plus"}, OPTIMAL),  # T5's business
        (
            nvidia("9.0", "H100", mig_profile="1g.10gb"),
            {"compute_capability": "9.0", "gpu_product": "H100"},
            SUBOPTIMAL,
        ),
    ],
)
def test_t4_gpu(device: Accelerator, details: dict[str, Any], verdict: Verdict) -> None:
    assert _verdict(trt.t4_gpu_is_the_builders, _gpu(device), **details) == verdict


def test_t4_finds_the_matching_gpu_of_several() -> None:
    where = _gpu(nvidia("7.5", "T4"))
    where = replace(where, facts=replace(where.facts, accelerators=(*where.facts.accelerators, L4)))

    assert _verdict(trt.t4_gpu_is_the_builders, where, compute_capability="8.9", gpu_product="NVIDIA L4") == OPTIMAL


@pytest.mark.parametrize(
    ("where", "details", "verdict"),
    [
        (_gpu(), {"hardware_level": "none"}, OPTIMAL),
        (_gpu(), {"hardware_level": "ampere_plus"}, SUBOPTIMAL),
        (_gpu(nvidia("7.5")), {"hardware_level": "ampere_plus"}, RECOMPILE),
        (_gpu(nvidia("7.5")), {"hardware_level": "same_compute_capability"}, SUBOPTIMAL),
        (_gpu(nvidia("7.0")), {"hardware_level": "same_compute_capability"}, RECOMPILE),
        (_gpu(), {"hardware_level": "ampere_plus", "instance_norm_plugin": True}, UNSUPPORTED),
        (_gpu(nvidia("8.7"), l4t="36.4.3"), {"hardware_level": "ampere_plus"}, RECOMPILE),
        (_gpu(), {"hardware_level": "hopper_minus"}, RECOMPILE),
    ],
)
def test_t5_compatibility_levels(where: Fingerprint, details: dict[str, Any], verdict: Verdict) -> None:
    assert _verdict(trt.t5_compatibility_level_covers_the_gpu, where, **details) == verdict


@pytest.mark.parametrize(
    ("platform", "where", "verdict"),
    [
        ("linux-x86_64", _gpu(), OPTIMAL),
        ("linux-aarch64", _gpu(l4t="36.4.3"), OPTIMAL),
        ("linux-x86_64", _gpu(l4t="36.4.3"), RECOMPILE),
        ("windows-x86_64", _gpu(), RECOMPILE),
        ("", _gpu(), RECOMPILE),
    ],
)
def test_t6_platform(platform: str, where: Fingerprint, verdict: Verdict) -> None:
    assert _verdict(trt.t6_platform_is_the_same, where, platform=platform) == verdict


@pytest.mark.parametrize(
    ("capability", "version", "verdict"),
    [
        ("7.5", "11.4.1.5", OPTIMAL),
        ("7.0", "10.4.0.26", OPTIMAL),
        ("7.0", "10.5.0.18", UNSUPPORTED),
        ("6.1", "10.0.0.1", UNSUPPORTED),
        ("10.0", "10.7.0.23", UNSUPPORTED),
        ("10.0", "10.8.0.43", OPTIMAL),
        ("10.7", "11.1.0.1", UNSUPPORTED),
        ("10.7", "11.3.0.1", OPTIMAL),
        ("12.1", "10.13.3.9", SUBOPTIMAL),
        ("12.1", "11.1.0.1", OPTIMAL),
        ("", "11.1.0.1", OPTIMAL),
    ],
)
def test_t7_served_gpus(capability: str, version: str, verdict: Verdict) -> None:
    assert _verdict(trt.t7_runtime_serves_the_gpu, _gpu(nvidia(capability), version)) == verdict


@pytest.mark.parametrize(
    ("built_with", "driver_serves", "verdict"),
    [
        ("13.0", "13.0", OPTIMAL),
        ("13", "13.1", OPTIMAL),
        ("12.8", "13.0", OPTIMAL),
        ("13.3", "13.0", RECOMPILE),
        ("13", "12.8", RECOMPILE),
        ("", "12.8", OPTIMAL),
        ("13.3", "", OPTIMAL),
    ],
)
def test_t8_driver(built_with: str, driver_serves: str, verdict: Verdict) -> None:
    where = _gpu(nvidia("8.9", cuda=driver_serves))

    assert _verdict(trt.t8_driver_serves_the_cuda, where, cuda=built_with) == verdict


@pytest.mark.parametrize(
    ("version", "l4t", "dla", "verdict"),
    [
        ("10.3.0.30", "36.4.3", False, OPTIMAL),
        ("11.0.0.1", "36.4.3", False, RECOMPILE),
        ("11.0.0.1", "38.2.0", False, OPTIMAL),
        ("11.3.0.1", "38.2.0", False, RECOMPILE),
        ("11.4.1.5", "38.2.0", False, SUBOPTIMAL),
        ("11.4.1.5", "", False, OPTIMAL),
        ("10.3.0.30", "36.4.3", True, OPTIMAL),
        ("11.0.0.1", "38.2.0", True, UNSUPPORTED),
        ("11.4.1.5", "38.2.0", True, SUBOPTIMAL),
        ("10.3.0.30", "", True, UNSUPPORTED),
    ],
)
def test_t9_jetpack(version: str, l4t: str, dla: bool, verdict: Verdict) -> None:
    assert _verdict(trt.t9_jetpack_takes_this_tensorrt, _gpu(version=version, l4t=l4t), trt=version, dla=dla) == verdict


def test_t9_says_that_jetpack_6_stays_on_tensorrt_10() -> None:
    where = _gpu(nvidia("8.7"), l4t="36.4.3")

    reason = trt.t9_jetpack_takes_this_tensorrt(contract("tensorrt", device="cuda", trt="11.4.1.5"), where)

    assert reason is not None
    assert "JetPack 6 stays on TensorRT 10" in reason.way_out


def _plan(major: int, minor: int, patch: int, build: int, magic: int = 0x74727466, zero: int = 0) -> bytes:
    return struct.pack("<II16x4B", magic, zero, major, minor, patch, build)


def test_t10_plan_header_tells_the_version() -> None:
    assert parse_plan_header(_plan(10, 13, 2, 6) + b"weights") == PlanHeader(10, 13, 2, 6)
    assert str(parse_plan_header(_plan(11, 4, 1, 5))) == "11.4.1.5"


@pytest.mark.parametrize(
    ("head", "text"),
    [
        (_plan(10, 13, 2, 6)[:27], "truncated"),
        (b"", "truncated"),
        (_plan(10, 13, 2, 6, magic=0x0BADF00D), "not a TensorRT plan"),
        (_plan(10, 13, 2, 6, zero=1), "not a TensorRT plan"),
    ],
)
def test_t10_anything_else_is_not_a_plan(head: bytes, text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        parse_plan_header(head)


def test_t10_header_must_agree_with_the_contract() -> None:
    rule = trt.t10_header_agrees_with_the_contract

    assert _verdict(rule, _gpu(), trt="10.13.2.6", plan_version="10.13.2.6") == OPTIMAL
    assert _verdict(rule, _gpu(), trt="10.13.2.6", plan_version="10.13.3.9") == UNSUPPORTED
    assert _verdict(rule, _gpu(), trt="10.13.2.6") == OPTIMAL


def test_t13_dynamic_plans_list_their_profiles() -> None:
    rule = trt.t13_profiles_are_listed

    assert _verdict(rule, _gpu(), dynamic_shapes=True) == UNSUPPORTED
    assert _verdict(rule, _gpu(), dynamic_shapes=True, profiles=("batch:1:8:32",)) == OPTIMAL
    assert _verdict(rule, _gpu(), dynamic_shapes=True, profiles=("0:a:1x3:8x3:32x3", "batch:8:1:32")) == UNSUPPORTED
    assert _verdict(rule, _gpu()) == OPTIMAL


@pytest.mark.parametrize(
    ("text", "name", "spans"),
    [
        ("batch:1:8:32", "batch", ((1,), (8,), (32,))),
        ("0:image:1x3:8x3:32x3", "image", ((1, 3), (8, 3), (32, 3))),
        ("12:serving:x:0:1x0:1x0:1x9", "serving:x:0", ((1, 0), (1, 0), (1, 9))),
        ("0:scalar:::", "scalar", ((), (), ())),
    ],
)
def test_t13_profiles_are_read(text: str, name: str, spans: tuple[tuple[int, ...], ...]) -> None:
    assert parse_profile(text) == (name, spans)


@pytest.mark.parametrize(
    "text", ["", "batch", "batch:1:8", "batch:a:8:32", "0:image:1x3:8:32x3", "b:9:8:32", "b:-2:1:1"]
)
def test_t13_profiles_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="profile"):
        parse_profile(text)


def test_t14_stripped_plans_name_their_weights() -> None:
    rule = trt.t14_stripped_plan_names_its_weights

    assert _verdict(rule, _gpu(), stripped=True) == UNSUPPORTED
    assert _verdict(rule, _gpu(), stripped=True, weights_digest="weights") == UNSUPPORTED
    assert _verdict(rule, _gpu(), stripped=True, weights_digest="ab" * 32) == OPTIMAL
    assert _verdict(rule, _gpu()) == OPTIMAL


def test_t15_plugins_run_only_where_the_operator_allows_their_digests() -> None:
    rule, digests = trt.t15_native_code_is_allowed, ("ab" * 32, "cd" * 32)

    assert _verdict(rule, _gpu(), plugins=digests) == UNSUPPORTED
    assert _verdict(rule, _gpu(plugins_allowed="true"), plugins=digests) == UNSUPPORTED
    assert _verdict(rule, _gpu(plugins_allowed=digests[0]), plugins=digests) == UNSUPPORTED
    assert _verdict(rule, _gpu(plugins_allowed=",".join(digests)), plugins=digests) == OPTIMAL
    assert _verdict(rule, _gpu()) == OPTIMAL


@pytest.mark.parametrize(
    ("where", "names"),
    [
        (_gpu(), ["tensorrt-fp16", "tensorrt-fp32", "tensorrt-int8", "tensorrt-tf32", "tensorrt-bf16"]),
        (_gpu(nvidia("7.5")), ["tensorrt-fp16", "tensorrt-fp32", "tensorrt-int8"]),
        (_gpu(nvidia("7.0")), []),
        (_gpu(None), []),
        (machine(gpu=L4), []),
    ],
)
def test_recipes_need_a_gpu_from_turing_on_and_the_runtime(where: Fingerprint, names: list[str]) -> None:
    assert [recipe.name for recipe in trt.recipes(where, FACTS)] == names


def test_contract_is_of_the_targets_gpu_and_the_builders_tensorrt() -> None:
    target, builder = _gpu(nvidia("8.7", "Orin"), "10.3.0.30", l4t="36.4.3"), _gpu(L4, "10.3.0.26")

    made = trt.contract_for(trt.recipes(target, FACTS)[0], FACTS, builder, target)

    assert (made.text("compute_capability"), made.text("trt")) == ("8.7", "10.3.0.26")
    assert (made.text("platform"), made.arches) == ("linux-aarch64", {"aarch64"})


def test_cuda_is_read_from_the_package_where_it_is_not_reported() -> None:
    library = _gpu(package="tensorrt-cu13").runtime("tensorrt")
    other = _gpu(package="tensorrt", cuda="12.6").runtime("tensorrt")
    assert library is not None
    assert other is not None

    assert (cuda_of(library), cuda_of(other)) == ("13", "12.6")
