# SPDX-License-Identifier: Apache-2.0
"""Orders for hardware classes, under a budget, and for engines that cannot run the model, through the real service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from compiler_svc.search_budget import MEASURING_SHARE, NOT_TRIED
from dovetail.hardware_class import hardware_class
from dovetail.negotiation import wanted_recipes
from dovetail.pb.v1 import artifacts_pb2, compiler_pb2, fleet_pb2, types_pb2
from dovetail.pb.v1.registry_pb2 import OperatorSupport
from dovetail.pb.v1.storage_pb2 import ModelRecord
from dovetail.rules import all_rules
from dovetail.wire import model_facts
from tests.fakes.compiler_mesh import Mesh, compiler_mesh, machine_of, register_digits, worker
from tests.fakes.scripted_build import ScriptedBuild
from tests.fixtures_compiler import refused

XEON = machine_of("xeon-skylake-no-vnni")
VNNI = machine_of("xeon-cascade-lake-vnni")
XEON_CLASS, VNNI_CLASS = hardware_class(XEON).key, hardware_class(VNNI).key
Status = grpc.StatusCode


@pytest.fixture
async def mesh(redis_url: str, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with compiler_mesh(redis_url, tmp_path) as running:
        yield running


async def report_node(mesh: Mesh, machine: Any, name: str = "node-1") -> None:
    await mesh.fleet.ReportNode(fleet_pb2.Node(id=name, role="edge", fingerprint_json=machine.to_bytes()))


# --- which machines


async def test_class_of_a_known_node_is_built_for_by_the_front_of_its_key(mesh: Mesh) -> None:
    await register_digits(mesh)
    await report_node(mesh, VNNI)

    async with worker(mesh, XEON, run=ScriptedBuild()):
        events = await mesh.compile("digits", "ort-int8-dynamic", hardware_class=VNNI_CLASS[:-6])

    assert [event.build.phase for event in events][-1] == compiler_pb2.BUILD_PHASE_READY
    assert {event.build.hardware_class for event in events} == {VNNI_CLASS}


async def test_fleet_means_every_class_of_workers_and_nodes(mesh: Mesh) -> None:
    await register_digits(mesh)
    await report_node(mesh, VNNI)

    async with worker(mesh, XEON, run=ScriptedBuild()):
        events = await mesh.compile("digits", hardware_class="fleet")

    assert {event.build.hardware_class for event in events} == {XEON_CLASS, VNNI_CLASS}


async def test_a_class_that_nobody_has_or_that_means_several_is_refused_with_the_known_ones(mesh: Mesh) -> None:
    await register_digits(mesh)
    await report_node(mesh, VNNI)

    async with worker(mesh, XEON, run=ScriptedBuild()):
        for fields, code, text in (
            ({"hardware_class": "riscv"}, Status.NOT_FOUND, XEON_CLASS),
            ({"hardware_class": "x86-64"}, Status.INVALID_ARGUMENT, "stands for 2 classes"),
            ({"hardware_class": "x86", "fingerprint_json": XEON.to_bytes()}, Status.INVALID_ARGUMENT, "names both"),
            ({"hardware_class": "No Such!"}, Status.INVALID_ARGUMENT, "hardware class"),
            ({"budget_s": -1.0}, Status.INVALID_ARGUMENT, "budget"),
            ({"budget_s": float("nan")}, Status.INVALID_ARGUMENT, "budget"),
            ({"objective": 77}, Status.INVALID_ARGUMENT, "objective"),
        ):
            found, said = await refused(mesh.compile("digits", **fields))
            assert (found, text in said) == (code, True), said


# --- a budget


def extra_names(machine: Any, record: ModelRecord) -> set[str]:
    facts = model_facts(record.model)
    return {recipe.name for rules in all_rules().values() for recipe in rules.extra_recipes(machine, facts)}


async def test_budget_tries_extra_recipes_and_is_divided_over_all_builds(mesh: Mesh) -> None:
    await register_digits(mesh)
    record = await mesh.storage.index.model("digits")
    script = ScriptedBuild()

    async with worker(mesh, XEON, run=script):
        events = await mesh.compile("digits", budget_s=600.0, objective=types_pb2.OBJECTIVE_THROUGHPUT)

    extra = extra_names(XEON, record)
    built = [spec.recipe.name for spec in script.specs]
    default = {recipe.name for recipe in wanted_recipes(XEON, model_facts(record.model))}
    assert extra
    assert extra & set(built)
    assert not set(built[: len(default & set(built))]) & extra  # the default ones come first
    assert {spec.objective for spec in script.specs} == {"throughput"}
    shares = {spec.measure_budget_s for spec in script.specs}
    assert shares == {600.0 * MEASURING_SHARE / len(built)}
    assert {event.build.phase for event in events} <= set(range(1, 8))


async def test_without_a_budget_only_the_default_recipes_are_built(mesh: Mesh) -> None:
    await register_digits(mesh)
    script = ScriptedBuild()

    async with worker(mesh, XEON, run=script):
        await mesh.compile("digits")

    assert not {spec.recipe.name for spec in script.specs} & extra_names(XEON, await mesh.storage.index.model("digits"))
    assert {spec.measure_budget_s for spec in script.specs} == {0.2}  # the worker's own


async def test_extra_builds_that_nobody_began_end_with_the_budget_and_default_ones_go_on(mesh: Mesh) -> None:
    await register_digits(mesh)
    hold = asyncio.Event()
    ended: dict[str, compiler_pb2.Build] = {}

    async with worker(mesh, XEON, run=ScriptedBuild(hold=hold)):
        async for event in mesh.compiler.Compile(compiler_pb2.CompileRequest(model="digits", budget_s=0.5)):
            if event.build.phase == compiler_pb2.BUILD_PHASE_CANCELLED:
                hold.set()  # until then the worker is busy with the first one
            if event.build.phase >= compiler_pb2.BUILD_PHASE_READY:
                ended[event.build.recipe.name] = event.build

    extra = extra_names(XEON, await mesh.storage.index.model("digits"))
    cancelled = {name for name, build in ended.items() if build.phase == compiler_pb2.BUILD_PHASE_CANCELLED}
    assert cancelled
    assert cancelled <= extra
    assert {ended[name].message for name in cancelled} == {NOT_TRIED}
    assert ended["ort-fp32"].phase == compiler_pb2.BUILD_PHASE_READY


# --- engines that cannot run the model


async def register_with_support(mesh: Mesh) -> None:
    await register_digits(mesh, "plain")
    record = ModelRecord.FromString((await mesh.storage.index.model("plain")).SerializeToString())
    record.model.name, record.model.version = "digits", 0
    record.model.support.append(
        OperatorSupport(engine="openvino", level="unsupported", operators=["com.example::Foo (opset 1)"])
    )
    await mesh.storage.index.add_model(record)


async def test_recipes_of_an_engine_that_cannot_run_the_model_are_told_and_not_queued(mesh: Mesh) -> None:
    await register_with_support(mesh)

    async with worker(mesh, XEON, run=ScriptedBuild()):
        events = await mesh.compile("digits")
        offer = await mesh.artifacts.Negotiate(
            artifacts_pb2.NegotiateRequest(model="digits", fingerprint_json=XEON.to_bytes(), order_builds=True)
        )
        builds = (await mesh.compiler.ListBuilds(compiler_pb2.ListBuildsRequest(model="digits"))).builds

    told = [event.build for event in events if event.build.recipe.engine == "openvino"]
    assert told
    assert {build.phase for build in told} == {compiler_pb2.BUILD_PHASE_UNROUTED}
    assert all("com.example::Foo" in build.message for build in told)
    assert "openvino" not in {build.recipe.engine for build in builds}
    waiting = [item for item in offer.better if item.recipe.engine == "openvino"]
    assert waiting
    assert all("com.example::Foo" in item.needs_worker for item in waiting)


async def test_naming_a_recipe_whose_engine_cannot_run_the_model_is_refused_with_the_operator(mesh: Mesh) -> None:
    await register_with_support(mesh)

    async with worker(mesh, XEON, run=ScriptedBuild()):
        code, text = await refused(mesh.compile("digits", "openvino-fp32"))

    assert code is Status.UNIMPLEMENTED
    assert "com.example::Foo" in text
