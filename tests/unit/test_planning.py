# SPDX-License-Identifier: Apache-2.0
"""Planning of build jobs: keys, routing, and what a missing worker must have."""

from __future__ import annotations

from dataclasses import replace

from compiler_svc.planning import builders, plan_builds
from compiler_svc.toolchain import advertised, toolchain_of
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import hardware_class
from dovetail.negotiation import wanted_recipes
from dovetail.pb.v1.registry_pb2 import AccuracyPolicy, Model
from dovetail.pb.v1.storage_pb2 import ModelRecord, WorkerRecord
from dovetail.recipe import Recipe
from dovetail.wire import model_facts
from tests.fakes.compiler_mesh import machine_of

XEON = machine_of("xeon-skylake-no-vnni")
VNNI = machine_of("xeon-cascade-lake-vnni")
PI = machine_of("raspberry-pi-5")
TOOLS = {"onnxruntime": {"onnxruntime": "1.31.1", "onnx": "1.23.2"}, "openvino": {"openvino": "2026.4.1"}}
RECORD = ModelRecord(
    model=Model(
        name="digits", version=1, model_digest="d" * 64, opset=17, ir_version=8, calibration_samples=9,
        operators=["Conv"], policy=AccuracyPolicy(task="classification", label_array="label"),
    ),
    calibration_digest="c" * 64,
    validation_digest="v" * 64,
)  # fmt: skip


def worker_of(machine: Fingerprint, worker_id: str = "w", **changes: dict[str, str]) -> WorkerRecord:
    tools = {engine: {**versions, **changes.get(engine, {})} for engine, versions in TOOLS.items()}
    return WorkerRecord(
        id=worker_id, fingerprint_json=machine.to_bytes(), engines=sorted(tools), toolchain=advertised(tools)
    )


def recipe(name: str, machine: Fingerprint) -> Recipe:
    return next(item for item in wanted_recipes(machine, model_facts(RECORD.model)) if item.name == name)


def key(
    name: str = "ort-fp32",
    *,
    target: Fingerprint = XEON,
    record: ModelRecord = RECORD,
    worker: WorkerRecord | None = None,
) -> str:
    (plan,) = plan_builds(record, target, [recipe(name, target)], builders([worker or worker_of(XEON)]))
    return plan.artifact_key


def test_key_is_the_same_for_equal_orders_and_shared_by_machines_of_one_contract() -> None:
    assert key() == key() == key(target=VNNI)


def test_key_follows_the_tools_of_its_own_engine_only() -> None:
    assert key(worker=worker_of(XEON, onnxruntime={"onnxruntime": "1.32.0"})) != key()
    assert key(worker=worker_of(XEON, openvino={"openvino": "2027.0.0"})) == key()


def test_key_follows_model_policy_and_the_samples_it_uses() -> None:
    other_model, other_policy, other_samples = ModelRecord(), ModelRecord(), ModelRecord()
    for changed in (other_model, other_policy, other_samples):
        changed.CopyFrom(RECORD)
    other_model.model.model_digest = "e" * 64
    other_policy.model.policy.max_metric_drop = 0.5
    other_samples.calibration_digest = "f" * 64

    assert len({key(), key(record=other_model), key(record=other_policy)}) == 3
    assert key(record=other_samples) == key()
    static = "ort-int8-static-u8s8-rr"
    assert key(static, record=other_samples) != key(static)


def test_job_tells_where_it_can_be_built_and_by_which_tools() -> None:
    (plan,) = plan_builds(RECORD, XEON, [recipe("ort-int8-static-u8s8-rr", XEON)], builders([worker_of(XEON)]))

    assert plan.job is not None
    assert (plan.job.engine, plan.job.arch) == ("onnxruntime", "x86_64")
    assert dict(plan.job.toolchain) == advertised({"onnxruntime": TOOLS["onnxruntime"]})
    assert toolchain_of(worker_of(XEON), "onnxruntime") == TOOLS["onnxruntime"]
    assert plan.job.hardware_class == hardware_class(XEON).key


def test_without_a_worker_there_is_no_key_but_a_wish() -> None:
    (plan,) = plan_builds(RECORD, PI, [recipe("ort-int8-static-s8s8", PI)], ())

    assert (plan.job, plan.artifact_key) == (None, "")
    where = "on aarch64 (or one that emulates armv8.2+dotprod)"
    assert plan.needs_worker == f"a worker with engine onnxruntime, device cpu, {where}"


def test_worker_that_could_not_check_the_result_is_not_used() -> None:
    (plan,) = plan_builds(RECORD, PI, [recipe("ort-int8-static-s8s8", PI)], builders([worker_of(XEON, "x86")]))

    assert plan.job is None
    assert "worker x86 cannot run it to check it" in plan.needs_worker
    (portable,) = plan_builds(RECORD, PI, [recipe("ort-fp32", PI)], builders([worker_of(XEON, "x86")]))
    assert portable.job is not None


def test_newest_tools_win_whatever_order_workers_are_listed_in() -> None:
    old = worker_of(XEON, "old", onnxruntime={"onnxruntime": "1.9.0"})
    new = worker_of(replace(XEON), "new", onnxruntime={"onnxruntime": "1.31.1"})

    assert [item.record.id for item in builders([old, new])] == ["new", "old"]
    assert [item.record.id for item in builders([new, old])] == ["new", "old"]
