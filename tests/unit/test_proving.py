# SPDX-License-Identifier: Apache-2.0
"""Where a gate runs: on the class itself, emulated, or elsewhere; and what that makes of keys and routing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

import pytest

from compiler_svc.jobs.record import capabilities_of, needs_of, tools_of
from compiler_svc.planning import PlannedBuild, builders, plan_builds
from compiler_svc.proving import same_silicon
from compiler_svc.toolchain import advertised
from dovetail.fingerprint import Accelerator, Fingerprint
from dovetail.hardware_class import features_of_isa, isa_class
from dovetail.negotiation import wanted_recipes
from dovetail.pb.v1.registry_pb2 import Model
from dovetail.pb.v1.storage_pb2 import BuildJob, Emulation, ModelRecord, WorkerRecord
from dovetail.wire import model_facts
from tests.fakes.compiler_mesh import machine_of

SKYLAKE, CASCADE_LAKE = machine_of("xeon-skylake-no-vnni"), machine_of("xeon-cascade-lake-vnni")
PI4, PI5 = machine_of("raspberry-pi-4"), machine_of("raspberry-pi-5")
TOOLS = {"onnxruntime": {"onnxruntime": "1.31.1"}, "openvino": {"openvino": "2026.4.1"}}
RECORD = ModelRecord(
    model=Model(
        name="digits", version=1, model_digest="d" * 64, opset=17, ir_version=8, calibration_samples=9,
        operators=["Conv"],
    ),
    calibration_digest="c" * 64,
)  # fmt: skip


def emulation_of(name: str, machine: Fingerprint, **changes: Iterable[str]) -> Emulation:
    facts = machine.facts
    fields = {"engines": ["onnxruntime"], **changes}
    isa = isa_class(facts.arch, facts.cpu_features)
    return Emulation(name=name, isa_class=isa, arch=facts.arch, cpu_features=sorted(facts.cpu_features), **fields)  # type: ignore[arg-type]


def worker_of(machine: Fingerprint, worker_id: str, *emulates: Emulation) -> WorkerRecord:
    return WorkerRecord(
        id=worker_id, fingerprint_json=machine.to_bytes(), engines=sorted(TOOLS), toolchain=advertised(TOOLS),
        emulates=emulates,
    )  # fmt: skip


def plan(name: str, target: Fingerprint, *workers: WorkerRecord) -> PlannedBuild:
    recipe = next(item for item in wanted_recipes(target, model_facts(RECORD.model)) if item.name == name)
    (planned,) = plan_builds(RECORD, target, [recipe], builders(workers))
    return planned


def job(name: str, target: Fingerprint, *workers: WorkerRecord) -> BuildJob:
    planned = plan(name, target, *workers)
    assert planned.job is not None, planned.needs_worker
    return planned.job


A72, A76 = emulation_of("qemu:cortex-a72", PI4), emulation_of("qemu:cortex-a76", PI5)
EXACT = emulation_of("exact-int8:x86-64-v4+vnni", CASCADE_LAKE, precisions=["int8"])


def test_worker_of_the_same_class_is_preferred_to_one_that_emulates_it() -> None:
    emulating, native = worker_of(SKYLAKE, "z-emulating", EXACT), worker_of(CASCADE_LAKE, "a-native")

    chosen = job("ort-int8-static-u8s8", CASCADE_LAKE, emulating, native)
    alone = job("ort-int8-static-u8s8", CASCADE_LAKE, emulating)

    assert (chosen.emulation, chosen.isa_class) == ("", "x86-64-v4+vnni")
    assert (alone.emulation, alone.isa_class) == ("exact-int8:x86-64-v4+vnni", "x86-64-v4+vnni")
    assert chosen.artifact_key != alone.artifact_key


def test_flavour_of_another_architecture_is_built_where_its_cpu_is_emulated() -> None:
    ordered = job("ort-int8-static-s8s8", PI4, worker_of(SKYLAKE, "w", A72, A76))

    assert (ordered.emulation, ordered.isa_class, ordered.arch) == ("qemu:cortex-a72", "armv8.0", "")
    assert plan("ort-int8-static-s8s8", PI4, worker_of(SKYLAKE, "w", A76)).job is None


def test_each_class_that_can_be_proven_has_an_artifact_of_its_own() -> None:
    worker = worker_of(SKYLAKE, "w", A72, A76)

    keys = {job("ort-int8-static-s8s8", target, worker).artifact_key for target in (PI4, PI5)}

    assert len(keys) == 2


def test_classes_that_nobody_can_prove_share_the_artifact_that_can_be() -> None:
    worker = worker_of(SKYLAKE, "w")

    orders = [job("ort-fp32", target, worker) for target in (SKYLAKE, CASCADE_LAKE, PI4)]

    assert len({order.artifact_key for order in orders}) == 1
    assert {order.isa_class for order in orders} == {"x86-64-v4"}


def test_emulation_counts_only_for_the_precisions_and_engines_that_it_reproduces() -> None:
    worker = worker_of(SKYLAKE, "w", EXACT)

    assert job("ort-fp32", CASCADE_LAKE, worker).emulation == ""
    assert job("openvino-fp32", CASCADE_LAKE, worker).emulation == ""
    assert job("ort-int8-dynamic", CASCADE_LAKE, worker).emulation == EXACT.name


def test_job_names_the_cpu_that_a_worker_must_have_among_its_tools() -> None:
    emulating, other = worker_of(SKYLAKE, "w", A72), worker_of(CASCADE_LAKE, "v")
    native, emulated = job("ort-fp32", SKYLAKE, emulating), job("ort-int8-static-s8s8", PI4, emulating)

    def able(worker: WorkerRecord, ordered: BuildJob) -> bool:
        has = json.loads(capabilities_of(worker))["toolchain"]
        return all(has.get(tool) == version for tool, version in json.loads(tools_of(ordered)).items())

    assert (able(emulating, native), able(other, native)) == (True, False)
    assert (able(emulating, emulated), able(other, emulated)) == (True, False)
    assert needs_of(native) == "engine onnxruntime with a CPU of class x86-64-v4 (onnxruntime/onnxruntime 1.31.1)"
    assert needs_of(emulated).startswith("engine onnxruntime that emulates armv8.0 by qemu:cortex-a72 (")


def test_devices_other_than_the_cpu_are_compared_by_device_and_not_by_instruction_set() -> None:
    gpu = Accelerator("nvidia_gpu", compute_capability="8.9", arch="ada")
    left = replace(SKYLAKE, facts=replace(SKYLAKE.facts, accelerators=(gpu,)))
    right = replace(CASCADE_LAKE, facts=replace(CASCADE_LAKE.facts, accelerators=(gpu,)))

    assert same_silicon(left, right, "cuda")
    assert not same_silicon(left, right, "cpu")
    assert not same_silicon(left, SKYLAKE, "cuda")


@pytest.mark.parametrize(
    "isa", ["x86-64-v1", "x86-64-v2", "x86-64-v3", "x86-64-v3+vnni", "x86-64-v4+vnni", "x86-64-v4+vnni+bf16+amx"]
)
def test_features_of_a_class_make_that_class(isa: str) -> None:
    assert isa_class("x86_64", features_of_isa(isa)) == isa
