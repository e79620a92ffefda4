# SPDX-License-Identifier: Apache-2.0
"""F9 and F10: workers and their children killed at every step, and workers that sleep through their lease."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.chaos import chaos_round
from tests.faults.client import Client
from tests.faults.ledger import FAILED, READY
from tests.faults.mesh import FaultMesh, until
from tests.faults.model_orders import PHASES, ModelOrders, model_bytes
from tests.faults.processes import Process
from tests.faults.seeds import replayable, seeds
from tests.faults.worker_process import DIE_AT, SLEEP_AT

STEPS = 20
"""A little more than one build takes: some 15 renames and scripts (see `signal_at_step`)."""


async def ordered(client: Client, name: str, orders: ModelOrders = ModelOrders()) -> str:  # noqa: B008
    version = await client.push(name, model_bytes(name.encode(), orders))
    return await client.order(name, version)


def holder(mesh: FaultMesh, key: str) -> Process:
    """The worker that claimed a build last."""
    claims = [step for step in mesh.steps() if step.key == key and step.what == "claimed"]
    return mesh.workers[claims[-1].worker]


async def one_job_for_each(mesh: FaultMesh, client: Client, fault: str) -> tuple[list[Process], list[str]]:
    """Workers that come to grief at step 1, 2, 3 …, one after another, each in a job; and those jobs, to be taken over.

    Their leases are long, so that none of them takes over from another, and end when all have come to grief.
    """
    await asyncio.gather(*(worker.stop() for worker in mesh.workers.values()))
    workers, keys = [], []
    for step in range(1, STEPS):
        name = f"doomed-{step}"
        workers.append(await mesh.start_worker(name, **{fault: str(step), "DOVETAIL_LEASE_S": "600"}))
        keys.append(await ordered(client, f"m-{step}"))
        await until(lambda name=name: any(item.worker == name for item in mesh.steps()) or _idle(mesh, keys))
    begun = {item.worker for item in mesh.steps()}
    for number, worker in enumerate(workers, 1):
        if f"doomed-{number}" in begun:  # then it comes to its step, by its heartbeats if not by its job
            await until(lambda worker=worker: worker.frozen or not worker.alive)
        else:
            await worker.stop()
    await mesh.end_leases()
    return workers, keys


def _idle(mesh: FaultMesh, keys: list[str]) -> bool:
    """True if every job was taken: a worker that outlived its own job may have taken the next one's."""
    return {step.key for step in mesh.steps()} >= set(keys)


@pytest.mark.parametrize("phase", PHASES)
async def test_f09_worker_killed_in_a_phase_is_replaced_and_its_child_dies_with_it(mesh: FaultMesh, phase: str) -> None:
    client = mesh.client()
    mesh.hold_once("hold")
    key = await ordered(client, "tiny", ModelOrders(phase=phase, hold="hold"))
    await client.seen_in(key, phase)
    worker = holder(mesh, key)
    children = worker.descendants()

    await worker.kill()

    build = await client.end_of(key)
    assert (build.phase, build.attempts) == (READY, 2)
    assert children
    await until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    await mesh.audit(client)


@pytest.mark.parametrize("phase", PHASES)
async def test_f09_child_killed_in_a_phase_is_a_typed_failure_that_can_be_ordered_again(
    mesh: FaultMesh, phase: str
) -> None:
    client = mesh.client()
    mesh.hold_once("hold")
    key = await ordered(client, "tiny", ModelOrders(phase=phase, hold="hold"))
    await client.seen_in(key, phase)
    worker = holder(mesh, key)

    os.kill(worker.descendants()[-1], signal.SIGKILL)
    build = await client.end_of(key)
    await client.order("tiny", 1, rebuild=key)

    assert (build.phase, build.failure.code) == (FAILED, "out_of_memory")
    assert phase in build.failure.message
    assert worker.alive
    assert (await client.end_of(key)).phase == READY
    await mesh.audit(client)


async def test_f09_worker_and_child_killed_together_at_random_moments(mesh: FaultMesh) -> None:
    """The parent's death and the child's are seen in either order."""
    client = mesh.client()
    for seed in seeds(12):
        with replayable(seed):
            rng = random.Random(seed)
            key = await ordered(client, f"m{seed}", ModelOrders(build_ms=100))
            await until(lambda key=key: any(step.key == key for step in mesh.steps()))
            worker = holder(mesh, key)
            await asyncio.sleep(rng.uniform(0, 0.2))  # the moment of the fault
            victims = [worker.pid, *worker.descendants()]
            rng.shuffle(victims)
            for victim in victims:
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            await worker.wait()
            mesh.ledger.kills["worker and child"] += 1
            await mesh.keep_workers(2)
    await mesh.settle(client)
    await mesh.audit(client)


async def test_f09_worker_killed_at_every_step_leaves_one_result(mesh: FaultMesh) -> None:
    """Each of many workers dies at another step of one build; the ones that follow finish them all."""
    client = mesh.client()
    doomed, keys = await one_job_for_each(mesh, client, DIE_AT)
    await mesh.keep_workers(2 + sum(worker.alive for worker in doomed))

    builds = await asyncio.gather(*(client.end_of(key) for key in keys))

    assert {build.phase for build in builds} == {READY}
    died = [worker for worker in doomed if not worker.alive]
    assert {await worker.wait() for worker in died} == {-signal.SIGKILL}
    assert len(died) > STEPS / 3
    mesh.ledger.kills["worker at a step"] += len(died)
    await mesh.audit(client)


async def test_f10_worker_that_wakes_after_its_lease_at_any_step_publishes_nothing(mesh: FaultMesh) -> None:
    """Each of many workers is stopped at another step of one build, and wakes when another has published it."""
    client = mesh.client()
    doomed, keys = await one_job_for_each(mesh, client, SLEEP_AT)
    asleep = [worker for worker in doomed if worker.alive]
    await mesh.keep_workers(2 + len(asleep))
    builds = await asyncio.gather(*(client.end_of(key) for key in keys))
    before = {key: await client.fetch(key) for key in keys}

    for worker in asleep:
        worker.send(signal.SIGCONT)
    await asyncio.gather(*(worker.stop() for worker in mesh.workers.values()))

    assert {build.phase for build in builds} == {READY}
    assert {key: await client.fetch(key) for key in keys} == before
    newest: dict[str, int] = {}
    for step in mesh.steps():
        newest[step.key] = max(step.fence, newest.get(step.key, 0))
    stale = {step.key for step in mesh.steps() if step.what == "published" and step.fence != newest[step.key]}
    assert [step for step in mesh.steps() if step.key in stale] == []
    assert len({step.key for step in mesh.steps() if step.attempt > 1}) > STEPS / 3
    assert list((mesh.root / "tmp" / "dovetail").iterdir()) == []
    mesh.ledger.kills["worker stopped"] += len(asleep)
    await mesh.keep_workers(1)
    await mesh.audit(client)


async def test_f09_workers_and_children_killed_under_load(mesh: FaultMesh) -> None:
    for seed in seeds(8):
        with replayable(seed):
            await chaos_round(mesh, seed, targets=["worker", "child"], kills=4)
    await mesh.audit(mesh.client(), everything=True)


async def test_f09_compiler_service_killed_under_load(mesh: FaultMesh) -> None:
    for seed in seeds(8):
        with replayable(seed):
            await chaos_round(mesh, seed, targets=["service"], kills=4)
    await mesh.audit(mesh.client(), everything=True)


async def test_f09_anything_killed_under_load(mesh: FaultMesh) -> None:
    for seed in seeds(8):
        with replayable(seed):
            await chaos_round(mesh, seed, targets=["meta", "blob", "service", "worker", "child"], kills=5)
    await mesh.audit(mesh.client(), everything=True)
