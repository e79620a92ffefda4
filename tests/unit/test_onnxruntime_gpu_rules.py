# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on NVIDIA GPUs: which recipes a machine gets, what their contracts say, and each rule E1 to E7."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dovetail.contract import Contract
from dovetail.fingerprint import Accelerator, Fingerprint, RuntimeLibrary
from dovetail.negotiation import wanted_recipes
from dovetail.rules import Verdict, all_rules
from dovetail.rules import onnxruntime_gpu_fit as fit
from dovetail.rules import onnxruntime_rules as ort
from dovetail.rules.onnxruntime_gpu import CUDA_PROVIDER, TENSORRT_PROVIDER, options_by_provider
from tests.fakes.machines import FACTS, contract, machine, nvidia

BOTH = (TENSORRT_PROVIDER, CUDA_PROVIDER, "CPUExecutionProvider")
L4, T4 = nvidia("8.9"), nvidia("7.5", "Tesla T4")


def box(
    gpu: Accelerator | None = L4, devices: tuple[str, ...] = BOTH, *, version: str = "1.31.1", cuda: str = "13.0",
    absent: dict[str, str] | None = None, **others: str,
) -> Fingerprint:  # fmt: skip
    found = machine(gpu=gpu, onnxruntime=version, **others)
    library = RuntimeLibrary(version, devices, {"cuda": cuda, "package": "onnxruntime-gpu"})
    facts = replace(found.facts, runtimes={**found.facts.runtimes, "onnxruntime": library})
    return Fingerprint(facts, replace(found.instance, absent=absent or {}))


def names(where: Fingerprint, *, extra: bool = False) -> set[str]:
    known = ort.extra_recipes(where, FACTS) if extra else ort.recipes(where, FACTS)
    return {recipe.name for recipe in known if recipe.device == "cuda"}


def contract_of(name: str, builder: Fingerprint, target: Fingerprint | None = None) -> Contract:
    known = (*ort.recipes(builder, FACTS), *ort.extra_recipes(builder, FACTS))
    recipe = next(recipe for recipe in known if recipe.name == name)
    return ort.contract_for(recipe, FACTS, builder, target or builder)


def worst(what: Contract, where: Fingerprint) -> tuple[Verdict, str]:
    found = [reason for rule in ort.RULES if (reason := rule(what, where)) is not None]
    return max(((reason.verdict, str(reason)) for reason in found), default=(Verdict.OPTIMAL, ""))


def cuda(precision: str = "fp32", provider: str = CUDA_PROVIDER, **details: Any) -> Contract:
    return contract("onnxruntime", precision, "cuda", execution_provider=provider, **details)


def test_gpu_box_without_tensorrt_is_served_on_its_gpu_by_cuda_and_by_the_tensorrt_provider() -> None:
    assert names(box()) == {"ort-cuda-fp32", "ort-cuda-tf32", "ort-cuda-fp16", "ort-tensorrt-tf32", "ort-tensorrt-fp16"}
    assert names(box(T4)) == {"ort-cuda-fp32", "ort-cuda-fp16", "ort-tensorrt-fp32", "ort-tensorrt-fp16"}


def test_beside_tensorrts_own_engine_the_provider_is_an_extra() -> None:
    where = box(tensorrt="10.13.2.6")

    assert names(where) == {"ort-cuda-fp32", "ort-cuda-tf32", "ort-cuda-fp16"}
    assert names(where, extra=True) == {
        "ort-tensorrt-tf32", "ort-tensorrt-fp16",
        "ort-cuda-fp32-gpu-only", "ort-cuda-tf32-gpu-only", "ort-cuda-fp16-gpu-only",
    }  # fmt: skip


@pytest.mark.parametrize("where", [box(None), box(devices=("CPUExecutionProvider",)), machine(gpu=L4)])
def test_without_a_gpu_or_its_provider_there_is_no_gpu_recipe(where: Fingerprint) -> None:
    assert names(where) == names(where, extra=True) == set()


def test_recipe_names_of_all_engines_stay_distinct_on_a_gpu_box() -> None:
    where = box(tensorrt="10.13.2.6", openvino="2026.4.1", torch="2.13.0+cu130")
    found = [recipe.name for recipe in wanted_recipes(where, FACTS)]
    found += [recipe.name for rules in all_rules().values() for recipe in rules.extra_recipes(where, FACTS)]

    assert len(found) == len(set(found))


def test_contract_names_the_provider_with_its_options_and_the_gpu_that_proved_it() -> None:
    what = contract_of("ort-cuda-tf32", box(), box(T4))

    assert what.text("execution_provider") == CUDA_PROVIDER
    assert options_by_provider(what.details["provider_options"])[CUDA_PROVIDER] == {
        "use_tf32": "1", "cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested",
    }  # fmt: skip
    assert (what.text("validated_capability"), what.text("execution_precision")) == ("8.9", "tf32")
    assert what == contract_of("ort-cuda-tf32", box(), box(nvidia("9.0")))
    assert not what.flag("require_gpu")
    assert contract_of("ort-cuda-fp32-gpu-only", box()).flag("require_gpu")
    assert Contract.from_json(what.to_json()) == what


def test_fp32_switches_tf32_off_and_tensorrt_writes_no_cache() -> None:
    plain = options_by_provider(contract_of("ort-cuda-fp32", box()).details["provider_options"])
    half = options_by_provider(contract_of("ort-tensorrt-fp16", box()).details["provider_options"])

    assert plain[CUDA_PROVIDER]["use_tf32"] == "0"
    assert half[TENSORRT_PROVIDER] == {
        "trt_fp16_enable": "1", "trt_max_workspace_size": str(1 << 30),
        "trt_engine_cache_enable": "0", "trt_timing_cache_enable": "0",
    }  # fmt: skip


def test_options_that_are_not_readable_are_left_out() -> None:
    assert options_by_provider(("A:x=1", "A:y=a=b", "nonsense", "A:z")) == {"A": {"x": "1", "y": "a=b"}}
    assert options_by_provider("A:x=1") == {}


@pytest.mark.parametrize("name", ["ort-cuda-fp32", "ort-cuda-tf32", "ort-cuda-fp16", "ort-tensorrt-fp16"])
def test_machine_fits_what_it_was_built_for(name: str) -> None:
    assert worst(contract_of(name, box()), box()) == (Verdict.OPTIMAL, "")


def test_e1_no_gpu() -> None:
    reason = fit.e1_gpu_is_there(cuda(), machine())

    assert reason is not None
    assert reason.verdict is Verdict.UNSUPPORTED
    assert fit.e1_gpu_is_there(cuda(), box()) is None


def test_e2_provider_whose_libraries_do_not_load_is_refused_with_what_is_missing() -> None:
    absent = {"onnxruntime.CUDAExecutionProvider": "libcublasLt.so.13: cannot open shared object file"}
    broken = box(devices=("CPUExecutionProvider",), absent=absent)
    reason = fit.e2_provider_loads(cuda(), broken)

    assert reason is not None
    assert reason.verdict is Verdict.UNSUPPORTED
    assert "libcublasLt.so.13" in reason.has
    assert fit.e2_provider_loads(cuda(), box()) is None
    assert fit.e2_provider_loads(cuda(provider=TENSORRT_PROVIDER), box(devices=BOTH[1:])) is not None


@pytest.mark.parametrize(
    ("built", "served", "fits"),
    [("13.0", "13.0", True), ("12.8", "13.0", True), ("13.4", "13.0", True), ("13.0", "12.9", False),
     ("", "12.0", True), ("13.0", "", True)],
)  # fmt: skip
def test_e3_driver_must_serve_the_cuda_major_of_the_package(built: str, served: str, fits: bool) -> None:
    reason = fit.e3_driver_serves_the_cuda(cuda(), box(nvidia("8.9", cuda=served), cuda=built))

    assert (reason is None) is fits
    assert reason is None or (reason.verdict is Verdict.UNSUPPORTED and "CUDA 12" in reason.way_out)


@pytest.mark.parametrize(
    ("capability", "built", "verdict"),
    [("7.5", "13.0", Verdict.OPTIMAL), ("7.0", "13.0", Verdict.UNSUPPORTED), ("7.0", "12.8", Verdict.OPTIMAL),
     ("5.2", "12.8", Verdict.UNSUPPORTED), ("12.1", "13.0", Verdict.OPTIMAL), ("10.0", "13.0", Verdict.SUBOPTIMAL),
     ("7.0", "", Verdict.OPTIMAL)],
)  # fmt: skip
def test_e4_kernels_for_the_gpu(capability: str, built: str, verdict: Verdict) -> None:
    reason = fit.e4_kernels_are_there_for_the_gpu(cuda(), box(nvidia(capability), cuda=built))

    assert (Verdict.OPTIMAL if reason is None else reason.verdict) is verdict


def test_e5_tf32_before_ampere_is_slower_and_right() -> None:
    reason = fit.e5_tf32_is_there(cuda("tf32"), box(T4))

    assert reason is not None
    assert reason.verdict is Verdict.SUBOPTIMAL
    assert fit.e5_tf32_is_there(cuda("tf32"), box()) is None
    assert fit.e5_tf32_is_there(cuda("fp32"), box(T4)) is None


@pytest.mark.parametrize(
    ("version", "tensorrt", "fits"),
    [("1.26.0", "11.4.1.5", False), ("1.27.0", "11.4.1.5", True), ("1.26.0", "10.13.2.6", True)],
)
def test_e6_tensorrt_11_needs_onnxruntime_1_27(version: str, tensorrt: str, fits: bool) -> None:
    where = box(version=version, tensorrt=tensorrt)

    assert (fit.e6_provider_takes_this_tensorrt(cuda(provider=TENSORRT_PROVIDER), where) is None) is fits
    assert fit.e6_provider_takes_this_tensorrt(cuda(), where) is None


def test_e7_gate_on_another_gpu_is_told() -> None:
    what = contract_of("ort-cuda-fp16", box())
    verdict, why = worst(what, box(nvidia("9.0", "NVIDIA H100")))

    assert verdict is Verdict.SUBOPTIMAL
    assert "compute capability 8.9" in why


@pytest.mark.parametrize("rule", fit.GPU_RULES)
def test_gpu_rules_have_nothing_to_say_about_the_cpu(rule: Any) -> None:
    assert rule(contract("onnxruntime", "fp16", "cpu"), machine()) is None


def test_faults_of_fp16_on_the_cpu_do_not_concern_the_gpu() -> None:
    old = box(version="1.29.0")

    assert ort.r7_runtime_release_is_validated(cuda("fp16"), old) is None
    assert ort.r7_runtime_release_is_validated(contract("onnxruntime", "fp16", "cpu"), old) is not None


def test_prior_ranks_precisions_and_credits_an_integrated_gpu_with_less() -> None:
    speeds = [ort.prior(contract_of(f"ort-cuda-{name}", box()), box()) for name in ("fp16", "tf32", "fp32")]
    shared = box(nvidia("12.1", "NVIDIA GB10", unified_memory=True))

    assert speeds == sorted(speeds, reverse=True)
    assert min(speeds) > 1
    assert ort.prior(contract_of("ort-cuda-fp16", shared), shared) < speeds[0]
