# SPDX-License-Identifier: Apache-2.0
"""AOTInductor's rules, one table each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dovetail.fingerprint import Fingerprint, RuntimeLibrary
from dovetail.hardware_class import features_of_isa
from dovetail.rules import ModelFacts, Verdict
from dovetail.rules import aotinductor_rules as aoti
from dovetail.rules.aotinductor_isa import features_behind, torch_isa
from tests.fakes.machines import AVX2, FACTS, PI4, PI5, VNNI, contract, machine, nvidia

OPTIMAL, SUBOPTIMAL, RECOMPILE, UNSUPPORTED = (
    Verdict.OPTIMAL,
    Verdict.SUBOPTIMAL,
    Verdict.RECOMPILE,
    Verdict.UNSUPPORTED,
)


def _torch(
    features: frozenset[str] = AVX2, arch: str = "x86_64", version: str = "2.13.0+cpu", **rest: Any
) -> Fingerprint:
    return machine(arch, features, torch=version, **rest)


def _verdict(rule: Any, where: Fingerprint, device: str = "cpu", **details: Any) -> Verdict:
    reason = rule(contract("aotinductor", device=device, **details), where)
    return OPTIMAL if reason is None else reason.verdict


def test_a1_metadata_becomes_contract_details_without_torch() -> None:
    metadata = {
        "AOTI_PLATFORM": "linux",
        "AOTI_MACHINE": "x86_64",
        "AOTI_CPU_ISA": "AVX2",
        "AOTI_COMPUTE_CAPABILITY": 89,
        "AOTI_DEVICE_KEY": "cuda",
        "other": {"nested": True},
    }

    assert aoti.details_from_metadata(metadata) == {
        "platform": "linux",
        "machine": "x86_64",
        "cpu_isa": "AVX2",
        "compute_capability": "8.9",
        "device_key": "cuda",
    }
    assert aoti.details_from_metadata({"AOTI_COMPUTE_CAPABILITY": "12.1"}) == {"compute_capability": "12.1"}
    assert aoti.details_from_metadata({}) == {}


@pytest.mark.parametrize(
    ("details", "where", "verdict"),
    [
        ({"platform": "linux", "machine": "x86_64"}, _torch(), OPTIMAL),
        ({"platform": "linux", "machine": "arm64"}, _torch(PI5, "aarch64"), OPTIMAL),
        ({"platform": "linux", "machine": "x86_64"}, _torch(PI5, "aarch64"), RECOMPILE),
        ({"platform": "win32", "machine": "x86_64"}, _torch(), RECOMPILE),
        ({}, _torch(), RECOMPILE),
    ],
)
def test_a1_platform_and_machine(details: dict[str, Any], where: Fingerprint, verdict: Verdict) -> None:
    assert _verdict(aoti.a1_platform_and_machine_agree, where, **details) == verdict


@pytest.mark.parametrize(
    ("isa", "where", "verdict"),
    [
        ("AVX2", _torch(AVX2), OPTIMAL),
        ("AVX2", _torch(VNNI), OPTIMAL),
        ("AVX512", _torch(VNNI), OPTIMAL),
        ("AVX512", _torch(AVX2), RECOMPILE),
        ("AVX512 AMX_TILE", _torch(VNNI), RECOMPILE),
        ("avx2", _torch(AVX2), OPTIMAL),
        ("ASIMD", _torch(PI4, "aarch64"), OPTIMAL),
        ("SVE256", _torch(PI5, "aarch64"), RECOMPILE),
        ("AVX1024", _torch(VNNI), RECOMPILE),
        ("", _torch(VNNI), RECOMPILE),
    ],
)
def test_a2_instruction_set(isa: str, where: Fingerprint, verdict: Verdict) -> None:
    assert _verdict(aoti.a2_instruction_set_is_covered, where, cpu_isa=isa) == verdict


@pytest.mark.parametrize(
    ("details", "gpu", "verdict"),
    [
        ({"compute_capability": "8.9"}, "8.9", OPTIMAL),
        ({"compute_capability": "8.6"}, "8.9", RECOMPILE),
        ({"compute_capability": "8.6", "multi_arch_kernel": True}, "8.9", SUBOPTIMAL),
        ({"compute_capability": "9.0", "multi_arch_kernel": True}, "8.9", RECOMPILE),
        ({"compute_capability": "8.9"}, "", UNSUPPORTED),
        ({}, "8.9", RECOMPILE),
    ],
)
def test_a3_cuda_kernels(details: dict[str, Any], gpu: str, verdict: Verdict) -> None:
    where = _torch(gpu=nvidia(gpu) if gpu else None)

    assert _verdict(aoti.a3_cuda_kernels_fit_the_gpu, where, "cuda", **details) == verdict
    assert _verdict(aoti.a3_cuda_kernels_fit_the_gpu, where, "cpu", **details) == OPTIMAL


@pytest.mark.parametrize(
    ("built_with", "here", "verdict"),
    [
        ("2.13.0+cpu", "2.13.1+cpu", OPTIMAL),
        ("2.13.0+cpu", "2.14.0+cpu", RECOMPILE),
        ("2.13.0+cu128", "2.13.0+cpu", RECOMPILE),
        ("", "2.13.0+cpu", RECOMPILE),
    ],
)
def test_a4_torch_release(built_with: str, here: str, verdict: Verdict) -> None:
    assert _verdict(aoti.a4_torch_is_the_same, _torch(version=here), torch=built_with) == verdict


V3 = features_of_isa("x86-64-v3")
V4 = features_of_isa("x86-64-v4+vnni")
PROGRAM = replace(FACTS, program="2.13.0")


def _with_gpu(where: Fingerprint, version: str = "2.13.0+cu130") -> Fingerprint:
    facts = replace(where.facts, runtimes={"torch": RuntimeLibrary(version, ("cpu", "cuda"))})
    return replace(where, facts=replace(facts, accelerators=(nvidia("8.9"),)))


def _names(where: Fingerprint, model: ModelFacts = PROGRAM) -> tuple[list[str], list[str]]:
    return [item.name for item in aoti.recipes(where, model)], [item.name for item in aoti.extra_recipes(where, model)]


@pytest.mark.parametrize(
    ("where", "default", "extra"),
    [
        (_torch(V3), ["aoti-cpu-v3", "aoti-cpu"], []),
        (_torch(V3, version="2.14.0+cpu"), [], ["aoti-cpu-v3", "aoti-cpu"]),
        (_torch(features_of_isa("x86-64-v2")), ["aoti-cpu"], []),
        (_torch(PI4, "aarch64"), ["aoti-cpu"], []),
        (_torch(frozenset(), "riscv64"), [], []),
        (machine(features=V3), [], []),
        (_with_gpu(_torch(V3)), ["aoti-cpu-v3", "aoti-cpu", "aoti-cuda"], ["aoti-cuda-multi", "aoti-cuda-tf32"]),
    ],
)
def test_recipes_are_for_models_with_a_program_of_the_machines_torch(
    where: Fingerprint, default: list[str], extra: list[str]
) -> None:
    assert _names(where) == (default, extra)
    assert _names(where, FACTS) == ([], [])


def test_portable_flavour_is_for_the_fleet_level_whatever_the_builder_has() -> None:
    recipe = next(item for item in aoti.recipes(_torch(V4), PROGRAM) if item.name == "aoti-cpu-v3")

    made = aoti.contract_for(recipe, PROGRAM, _torch(V4), _torch(V4))

    assert (recipe.options["march"], recipe.options["simdlen"]) == ("x86-64-v3", 256)
    assert (made.text("cpu_isa"), made.cpu_features) == ("AVX2", V3)


@pytest.mark.parametrize(
    ("builder", "target", "isa"),
    [
        (V3, V3, "AVX2"),
        (V4, V4, "AVX512 AVX512_VNNI"),
        (V3, V4, "AVX512 AVX512_VNNI"),  # safe: it holds less than its contract asks for
        (V4, V3, ""),  # -march=native would hold what the target does not have
        (V3 | {"aes", "rdrand"}, V3, "AVX2"),  # no compiler uses those by itself
    ],
)
def test_native_flavour_is_built_where_the_cpu_has_no_more(
    builder: frozenset[str], target: frozenset[str], isa: str
) -> None:
    recipe = next(item for item in aoti.recipes(_torch(target), PROGRAM) if item.name == "aoti-cpu")

    made = aoti.contract_for(recipe, PROGRAM, _torch(builder), _torch(target))

    assert made.text("cpu_isa") == isa
    refused = aoti.a2_instruction_set_is_covered(made, _torch(V4))
    assert (refused is None) == bool(isa)
    if refused is not None:
        assert "-march=native" in str(refused)
        assert "aoti-cpu-v3" in refused.way_out


def test_cuda_contract_names_the_builders_gpu() -> None:
    where = _with_gpu(_torch(V3))
    recipes = (*aoti.recipes(where, PROGRAM), *aoti.extra_recipes(where, PROGRAM))
    by_name = {item.name: aoti.contract_for(item, PROGRAM, where, where) for item in recipes}

    assert (by_name["aoti-cuda"].device, by_name["aoti-cuda"].text("compute_capability")) == ("cuda", "8.9")
    assert not by_name["aoti-cuda"].flag("multi_arch_kernel")
    assert by_name["aoti-cuda-multi"].flag("multi_arch_kernel")
    assert by_name["aoti-cuda-tf32"].precision == "tf32"


@pytest.mark.parametrize(
    ("features", "isa"),
    [
        (features_of_isa("x86-64-v2"), "INVALID_VEC_ISA"),
        (V3, "AVX2"),
        (features_of_isa("x86-64-v4"), "AVX512"),
        (V4, "AVX512 AVX512_VNNI"),
        (V4 | {"amx_tile", "amx_int8", "amx_bf16"}, "AVX512 AVX512_VNNI AMX_TILE"),
    ],
)
def test_torchs_name_of_an_instruction_set_needs_no_more_than_the_cpu_has(features: frozenset[str], isa: str) -> None:
    assert torch_isa("x86_64", features) == isa
    assert (features_behind(isa) or frozenset()) <= features
