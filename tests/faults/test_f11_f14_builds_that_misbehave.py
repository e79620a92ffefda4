# SPDX-License-Identifier: Apache-2.0
"""F11 to F14: a compiler that holds the interpreter, a crowd that wants one artifact, lost answers, poison models."""

from __future__ import annotations

import asyncio
import random

import grpc
import pytest

from dovetail.pb.v1 import compiler_pb2
from dovetail.pb.v1.compiler_pb2 import BUILD_FAILURE_KIND_DETERMINISTIC, BUILD_FAILURE_KIND_INFRASTRUCTURE
from dovetail.pb.v1.registry_pb2 import ListModelsRequest
from tests.fakes.compiler_mesh import push_requests
from tests.faults.client import TARGET, Client
from tests.faults.ledger import CANCELLED, FAILED, READY
from tests.faults.mesh import LEASE_S, FaultMesh, until
from tests.faults.model_orders import ModelOrders, model_bytes
from tests.faults.seeds import replayable, seeds

WAITERS = 500


async def test_f11_child_that_never_gives_the_interpreter_back_keeps_its_lease_and_can_be_cancelled(
    mesh: FaultMesh,
) -> None:
    client = mesh.client()
    version = await client.push("greedy", model_bytes(b"", ModelOrders(behaviour="gil")))
    key = await client.order("greedy", version)
    await until(lambda: any(step.key == key for step in mesh.steps()))
    worker = mesh.workers[mesh.steps()[-1].worker]
    await until(lambda: len(worker.descendants()) > 0)

    await asyncio.sleep(4 * LEASE_S)  # the fault's length: several leases
    other = await client.order("greedy", version, "ort-int8-dynamic")
    before = await client.build(key)
    await client.cancel(key)
    await client.cancel(other)

    assert before is not None
    assert before.attempts == 1
    assert (await client.end_of(key)).phase == CANCELLED
    await until(lambda: not worker.descendants())
    assert worker.alive
    await mesh.audit(client)


async def test_f12_five_hundred_that_want_one_artifact_cost_one_build(mesh: FaultMesh) -> None:
    client = mesh.client()
    version = await client.push("wanted", model_bytes(b"content", ModelOrders(build_ms=500)))
    request = compiler_pb2.CompileRequest(
        model="wanted", version=version, recipes=["ort-fp32"], fingerprint_json=TARGET
    )

    builds = await asyncio.gather(*(client.drive("wait", lambda: client.last_build(request)) for _ in range(WAITERS)))

    assert {build.phase for build in builds} == {READY}
    assert len({build.artifact_key for build in builds}) == 1
    assert [step.what for step in mesh.steps()] == ["claimed", "published"]


async def test_f13_orders_whose_answers_were_lost_are_one_version_and_one_build(mesh: FaultMesh) -> None:
    for seed in seeds(10):
        with replayable(seed):
            await _lose_answers(mesh, seed)


async def _lose_answers(mesh: FaultMesh, seed: int) -> None:
    """Send each call several times and hang up before its answer arrives, at a random moment; then ask properly."""
    rng = random.Random(seed)
    client = mesh.client()
    name, data = f"m{seed}", model_bytes(rng.randbytes(2000))

    async def hang_up(call: grpc.aio.Call) -> None:
        await asyncio.sleep(rng.uniform(0, 0.05))
        call.cancel()

    for _ in range(4):
        await hang_up(client.models.PushModel(push_requests(name, [("model", data)])))
    version = await client.push(name, data)
    request = compiler_pb2.CompileRequest(model=name, version=version, recipes=["ort-fp32"], fingerprint_json=TARGET)
    await asyncio.gather(*(hang_up(client.compiler.Compile(request)) for _ in range(4)))
    key = await client.order(name, version)
    await client.end_of(key)

    listed = await client.drive("list_models", lambda: client.models.ListModels(ListModelsRequest(name=name)))
    assert [model.version for model in listed.models] == [version]
    assert await client.artifacts(name) == [key]
    await mesh.audit(client)


@pytest.mark.parametrize("recipe", ["ort-fp32"])
async def test_f14_model_that_crashes_the_compiler_fails_once_with_its_kind_and_others_are_built(
    mesh: FaultMesh, recipe: str
) -> None:
    client = mesh.client()
    poison = await client.push("poison", model_bytes(b"", ModelOrders(behaviour="abort", phase="gating")))
    bad = await client.order("poison", poison, recipe)
    good = await several(client, "good")

    build = await client.end_of(bad)
    again = await client.order("poison", poison, recipe)

    assert (build.phase, build.failure.code, build.attempts) == (FAILED, "crash", 1)
    assert build.failure.kind == BUILD_FAILURE_KIND_DETERMINISTIC
    assert again == bad
    assert len([step for step in mesh.steps() if step.key == bad and step.what == "claimed"]) == 1
    assert {(await client.end_of(key)).phase for key in good} == {READY}
    await mesh.audit(client)


async def test_f14_model_that_takes_its_worker_with_it_is_given_up_after_three_and_others_are_built(
    mesh: FaultMesh,
) -> None:
    client = mesh.client()
    poison = await client.push("poison", model_bytes(b"", ModelOrders(behaviour="kill_worker")))
    bad = await client.order("poison", poison)
    good = await several(client, "good")
    ending = asyncio.create_task(client.end_of(bad))
    while not ending.done():
        await mesh.keep_workers(2)  # as a supervisor does
        await asyncio.sleep(0.02)

    build = await ending

    assert (build.phase, build.failure.code, build.attempts) == (FAILED, "worker_lost", 3)
    assert build.failure.kind == BUILD_FAILURE_KIND_INFRASTRUCTURE
    assert len([step for step in mesh.steps() if step.key == bad and step.what == "claimed"]) == 3
    assert {(await client.end_of(key)).phase for key in good} == {READY}
    mesh.ledger.kills["worker by poison"] += 3
    await mesh.audit(client)


async def several(client: Client, name: str, count: int = 6) -> list[str]:
    """Orders of models that are fine."""
    keys = []
    for number in range(count):
        version = await client.push(f"{name}-{number}", model_bytes(str(number).encode()))
        keys.append(await client.order(f"{name}-{number}", version))
    return keys
