# SPDX-License-Identifier: Apache-2.0
"""AOTInductor's rules, one table each."""

from __future__ import annotations

from typing import Any

import pytest

from dovetail.fingerprint import Fingerprint
from dovetail.rules import Verdict
from dovetail.rules import aotinductor_rules as aoti
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


@pytest.mark.parametrize(
    ("where", "march"),
    [(_torch(AVX2), "x86-64-v3"), (_torch(PI4, "aarch64"), "armv8-a"), (_torch(frozenset()), ""), (machine(), "")],
)
def test_recipes_are_for_the_fleet_level_not_for_the_builder(where: Fingerprint, march: str) -> None:
    recipes = aoti.recipes(where, FACTS)

    assert [recipe.options["march"] for recipe in recipes] == ([march] if march else [])
