# SPDX-License-Identifier: Apache-2.0
"""Fleets of GPU workers: who builds for whom, what an order waits for, and what stands in meanwhile."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from compiler_svc.jobs.record import capabilities_of, needs_of, tools_of
from compiler_svc.planning import PlannedBuild, builders, plan_builds
from compiler_svc.proving import device_word, same_silicon
from compiler_svc.stand_ins import stand_ins
from dovetail.fingerprint import Fingerprint
from dovetail.negotiation import wanted_recipes
from dovetail.pb.v1.registry_pb2 import Model
from dovetail.pb.v1.storage_pb2 import BuildJob, ModelRecord, WorkerRecord
from dovetail.rules import all_rules
from dovetail.wire import model_facts, read_contract
from tests.fakes.gpu_fleet import (
    GB10,
    H100,
    L4,
    L4_11,
    L4_PLAIN,
    NEW,
    OLD,
    ORIN,
    T4,
    THOR,
    XEON,
    allowing,
    with_tensorrt,
    worker_with,
)

RECORD = ModelRecord(
    model=Model(name="digits", version=1, model_digest="d" * 64, opset=17, ir_version=8, operators=["Conv"])
)


def plan(name: str, target: Fingerprint, *workers: WorkerRecord) -> PlannedBuild:
    facts = model_facts(RECORD.model)
    extras = [recipe for rules in all_rules().values() for recipe in rules.extra_recipes(target, facts)]
    recipe = next(item for item in (*wanted_recipes(target, facts), *extras) if item.name == name)
    return plan_builds(RECORD, target, [recipe], builders(workers))[0]


def job(name: str, target: Fingerprint, *workers: WorkerRecord) -> BuildJob:
    planned = plan(name, target, *workers)
    assert planned.job is not None, planned.needs_worker
    return planned.job


def takes(record: WorkerRecord, ordered: BuildJob) -> bool:
    """As the queue decides."""
    has = json.loads(capabilities_of(record))
    tools = all(has["toolchain"].get(tool) == version for tool, version in json.loads(tools_of(ordered)).items())
    return tools and f"{ordered.engine}/{ordered.arch}" in has["queues"]


@pytest.mark.parametrize(("target", "version", "builder"), [(L4, "10.13.2.6", OLD), (L4_11, "11.4.1.5", NEW)])
def test_of_two_majors_side_by_side_the_targets_own_is_chosen(
    target: Fingerprint, version: str, builder: WorkerRecord
) -> None:
    for workers in ((OLD, NEW), (NEW, OLD)):
        ordered = job("tensorrt-fp16", target, *workers)

        assert read_contract(ordered.contract_json).text("trt") == version
        assert [takes(item, ordered) for item in (OLD, NEW)] == [item is builder for item in (OLD, NEW)]


def test_jetpack_6_gets_its_own_tensorrt_10_and_never_the_newest_workers() -> None:
    newer = worker_with("orin-new", with_tensorrt(ORIN, "10.13.2.6", package="tensorrt-cu12"))
    waiting = plan("tensorrt-fp16", ORIN, OLD, NEW, newer)
    served = job("tensorrt-fp16", ORIN, OLD, NEW, newer, worker_with("orin", ORIN))

    assert waiting.job is None
    assert waiting.needs_worker.startswith(
        "a worker with engine tensorrt, device cuda, TensorRT 10.3.0.30,"
        " an NVIDIA GPU of compute capability 8.7 (Orin (nvgpu)), on aarch64"
    )
    assert "worker orin-new builds what this machine cannot run (T1: needs exactly TensorRT 10.13.2.6" in (
        waiting.needs_worker
    )
    assert read_contract(served.contract_json).text("trt") == "10.3.0.30"


@pytest.mark.parametrize("target", [H100, T4, GB10, THOR])
def test_native_plan_waits_where_no_worker_has_that_gpu(target: Fingerprint) -> None:
    waiting = plan("tensorrt-fp16", target, OLD, NEW)
    (gpu,) = target.accelerators("nvidia_gpu")

    assert waiting.job is None
    assert f"an NVIDIA GPU of compute capability {gpu.compute_capability} ({gpu.product})" in waiting.needs_worker
    assert target.facts.runtimes["tensorrt"].version in waiting.needs_worker


def test_worker_that_is_there_is_named_with_what_it_lacks() -> None:
    waiting = plan("tensorrt-fp16", H100, NEW)

    assert "worker trt11 cannot run it to check it (T4: needs a GPU of compute capability 9.0" in waiting.needs_worker


def test_job_goes_to_the_gpu_that_it_was_planned_for_and_to_no_other_with_the_same_tools() -> None:
    hopper = worker_with("hopper", H100)  # the same TensorRT as the L4's worker
    ordered = job("tensorrt-fp16", L4_11, hopper, NEW)

    assert ordered.accelerator == "8.9 NVIDIA L4"
    assert [takes(item, ordered) for item in (hopper, NEW)] == [False, True]
    assert "with a device 8.9 NVIDIA L4" in needs_of(ordered)


def test_same_product_is_preferred_to_another_of_the_same_capability() -> None:
    (gpu,) = L4.facts.accelerators
    other = replace(L4, facts=replace(L4.facts, accelerators=(replace(gpu, product="NVIDIA L40S"),)))
    both = (worker_with("z-l40s", other), worker_with("a-l4", L4))

    assert job("tensorrt-fp16", L4, *both).accelerator == "8.9 NVIDIA L4"
    assert job("tensorrt-fp16", L4, both[0]).accelerator == "8.9 NVIDIA L40S"


def test_second_gpu_of_a_worker_changes_nothing() -> None:
    (small,), (large,) = L4.facts.accelerators, H100.facts.accelerators
    mixed = replace(L4_11, facts=replace(L4_11.facts, accelerators=(large, small)))

    ordered = job("tensorrt-fp16", L4_11, worker_with("mixed", mixed))

    assert ordered.accelerator == "8.9 NVIDIA L4"
    assert same_silicon(mixed, L4_11, "cuda")
    assert device_word(replace(large, mig_profile="1g.10gb")) == "9.0 NVIDIA H100 80GB HBM3 1g.10gb"


def test_portable_plan_stands_in_for_an_unseen_gpu_until_a_worker_has_it() -> None:
    target, able = allowing(H100), builders([OLD, worker_with("trt11", allowing(L4_11))])
    recipes = [item for item in wanted_recipes(target, model_facts(RECORD.model)) if item.engine == "tensorrt"]
    plans = plan_builds(RECORD, target, recipes, able)

    found = {item.recipe.name: item for item in stand_ins(RECORD, target, plans, able)}

    assert all(item.job is None for item in plans)
    assert set(found) == {"tensorrt-fp16-portable", "tensorrt-fp32-portable"}
    contract = read_contract(found["tensorrt-fp16-portable"].job.contract_json)  # type: ignore[union-attr]
    assert (contract.text("trt"), contract.text("hardware_level")) == ("11.4.1.5", "ampere_plus")
    with_native = (*able, *builders([worker_with("hopper", target)]))
    assert stand_ins(RECORD, target, plan_builds(RECORD, target, recipes, with_native), with_native) == ()


def test_portable_plan_does_not_stand_in_where_its_host_code_is_not_allowed() -> None:
    able = builders([worker_with("trt11", allowing(L4_11))])
    plans = plan_builds(RECORD, H100, wanted_recipes(H100, model_facts(RECORD.model)), able)

    assert stand_ins(RECORD, H100, plans, able) == ()


@pytest.mark.parametrize("target", [T4, ORIN])
def test_nothing_portable_stands_in_before_ampere_or_on_a_jetson(target: Fingerprint) -> None:
    able = builders([OLD, NEW])
    plans = plan_builds(RECORD, target, wanted_recipes(target, model_facts(RECORD.model)), able)

    assert [item.recipe.name for item in stand_ins(RECORD, target, plans, able)] == []


def test_cpu_artifact_is_built_for_every_gpu_machine_meanwhile() -> None:
    for target in (H100, T4, GB10, ORIN, THOR):
        assert job("ort-fp32", target, OLD, NEW).engine == "onnxruntime"


def test_older_tensorrt_builds_a_portable_plan_only_for_who_may_run_host_code() -> None:
    older, target = worker_with("trt10", allowing(L4)), with_tensorrt(L4, "10.16.1.11")

    assert job("tensorrt-fp16-portable", allowing(target), older).engine == "tensorrt"
    refused = plan("tensorrt-fp16-portable", target, older)
    assert "TensorRT 10.16.1.11 or older of its major" in refused.needs_worker
    assert "worker trt10 builds what this machine cannot run (T3: needs leave" in refused.needs_worker


def test_plan_without_weights_can_be_ordered_before_its_weights_have_a_digest() -> None:
    assert job("tensorrt-fp16-stripped", L4, OLD).recipe.name == "tensorrt-fp16-stripped"


def test_gpu_box_without_tensorrt_is_built_for_by_any_worker_with_such_a_provider() -> None:
    ordered = job("ort-cuda-fp16", L4_PLAIN, worker_with("cpu", XEON), OLD)

    assert ordered.accelerator == "8.9 NVIDIA L4"
    assert [takes(item, ordered) for item in (worker_with("cpu", XEON), OLD)] == [False, True]
    waiting = plan("ort-cuda-fp16", L4_PLAIN, worker_with("cpu", XEON))
    assert "a working CUDAExecutionProvider, on any architecture" in waiting.needs_worker
    assert "E1: needs an NVIDIA GPU" in waiting.needs_worker


def test_what_was_proven_on_another_gpu_is_another_artifact() -> None:
    native, elsewhere = job("ort-cuda-fp32", L4_PLAIN, OLD), job("ort-cuda-fp32", H100, OLD)

    assert native.artifact_key != elsewhere.artifact_key
    assert native.artifact_key == job("ort-cuda-fp32", L4, OLD).artifact_key
