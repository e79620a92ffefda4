# SPDX-License-Identifier: Apache-2.0
"""A worker that is told to stop, a build that is cancelled, and what is heard of a build while it runs."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from compiler_svc.worker.build_spec import LOG_FILE
from compiler_svc.worker.sandbox import run_task
from compiler_svc.worker.stopping import hurried_by_signal
from dovetail.pb.v1 import compiler_pb2 as pb
from tests.fakes.compiler_mesh import Mesh, compiler_mesh, machine_of, register_digits, worker
from tests.fakes.scripted_build import ScriptedBuild

XEON = machine_of("xeon-skylake-no-vnni")
LIMIT_S = 30.0
FAMILY = """
import os, subprocess, sys, time
mark = sys.argv[1]
for session in (False, True):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", mark], start_new_session=session)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)
print("spawned", flush=True)
time.sleep(600)
"""


@pytest.fixture
async def mesh(redis_url: str, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with compiler_mesh(redis_url, tmp_path) as running:
        await register_digits(running)
        yield running


@pytest.fixture
def usual_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def ordering(mesh: Mesh, recipe: str = "ort-fp32") -> asyncio.Future[list[pb.BuildEvent]]:
    return asyncio.ensure_future(mesh.compile("digits", recipe, fingerprint_json=XEON.to_bytes()))


async def workers(mesh: Mesh) -> list[pb.Worker]:
    return list((await mesh.compiler.ListWorkers(pb.ListWorkersRequest())).workers)


async def test_a_stopping_worker_is_seen_to_drain_takes_nothing_more_and_is_gone_when_it_is_done(mesh: Mesh) -> None:
    hold, stop = asyncio.Event(), asyncio.Event()
    script = ScriptedBuild(hold=hold)

    async with worker(mesh, XEON, run=script, stop=stop) as record:
        first = ordering(mesh)
        await asyncio.wait_for(script.started.wait(), LIMIT_S)
        stop.set()
        async with asyncio.timeout(LIMIT_S):
            while not (seen := (await workers(mesh))[0]).draining:
                await asyncio.sleep(0.01)
        second = ordering(mesh, "ort-int8-dynamic")
        async with asyncio.timeout(LIMIT_S):
            while len(jobs := (await mesh.compiler.ListJobs(pb.ListJobsRequest())).jobs) < 2:
                await asyncio.sleep(0.01)
        hold.set()
        built = (await asyncio.wait_for(first, LIMIT_S))[-1].build
    second.cancel()

    assert (seen.id, [build.recipe.name for build in seen.builds]) == (record.id, ["ort-fp32"])
    assert (jobs[1].wait, jobs[1].build.recipe.name) == (pb.JOB_WAIT_NO_WORKER, "ort-int8-dynamic")
    assert built.phase == pb.BUILD_PHASE_READY
    assert len(script.specs) == 1
    assert await workers(mesh) == []


async def test_a_worker_in_a_hurry_gives_its_build_back_long_before_its_drain_time(mesh: Mesh) -> None:
    stop, hurry = asyncio.Event(), asyncio.Event()
    script = ScriptedBuild(hold=asyncio.Event())

    async with worker(mesh, XEON, run=script, drain_s=600, lease_s=60, stop=stop, hurry=hurry):
        watching = ordering(mesh)
        await asyncio.wait_for(script.started.wait(), LIMIT_S)
        stop.set()
        hurry.set()
        await asyncio.wait_for(script.cancelled.wait(), LIMIT_S)
    async with worker(mesh, XEON, run=ScriptedBuild(), worker_id="worker-2"):
        build = (await asyncio.wait_for(watching, LIMIT_S))[-1].build

    assert (build.phase, build.attempts) == (pb.BUILD_PHASE_READY, 1)


@pytest.mark.usefixtures("usual_signals")
async def test_only_a_signal_after_the_first_means_hurry() -> None:
    stop = asyncio.Event()

    async with hurried_by_signal(stop) as hurry:
        assert not hurry.is_set()
        stop.set()
        async with asyncio.timeout(LIMIT_S):
            while signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, None):
                await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(hurry.wait(), LIMIT_S)

        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_cancelling_kills_the_child_and_all_that_it_spawned_long_before_the_lease_is_renewed(mesh: Mesh) -> None:
    mark = f"family-{secrets.token_hex(8)}"
    spawned = asyncio.Event()

    async def run(directory: Path, spec: Any, limits: Any, on_progress: Any) -> Any:
        (directory / "family.py").write_text(FAMILY)
        told = asyncio.create_task(_until_spawned(mark, spawned))
        try:
            program = (str(directory / "family.py"), mark)
            return await run_task(directory, spec, limits=limits, on_progress=on_progress, threads=1, program=program)
        finally:
            told.cancel()

    async with worker(mesh, XEON, run=run, lease_s=3600):
        watching = ordering(mesh)
        await asyncio.wait_for(spawned.wait(), LIMIT_S)
        (job,) = (await mesh.compiler.ListJobs(pb.ListJobsRequest())).jobs
        await mesh.compiler.CancelBuild(pb.CancelBuildRequest(artifact_key=job.build.artifact_key))
        build = (await asyncio.wait_for(watching, LIMIT_S))[-1].build
        async with asyncio.timeout(LIMIT_S):
            while family_of(mark):
                await asyncio.sleep(0.02)

    assert build.phase == pb.BUILD_PHASE_CANCELLED


async def test_the_end_of_the_childs_log_reaches_who_asked_while_it_runs(mesh: Mesh) -> None:
    hold = asyncio.Event()
    script = ScriptedBuild(hold=hold)

    async def run(directory: Path, spec: Any, limits: Any, on_progress: Any) -> Any:
        (directory / LOG_FILE).write_text(f"folding constants in {directory}\n")
        return await script(directory, spec, limits, on_progress)

    request = pb.CompileRequest(model="digits", recipes=["ort-fp32"], fingerprint_json=XEON.to_bytes(), with_log=True)
    seen: list[str] = []
    async with worker(mesh, XEON, run=run), asyncio.timeout(LIMIT_S):
        async for event in mesh.compiler.Compile(request):
            if event.build.log_tail:
                seen.append(event.build.log_tail)
                alone = await mesh.compiler.GetBuild(pb.GetBuildRequest(artifact_key=event.build.artifact_key))
                listed = (await mesh.compiler.ListBuilds(pb.ListBuildsRequest())).builds[0]
                hold.set()

    assert seen == ["folding constants in <build>\n"]
    assert alone.log_tail == seen[0]
    assert listed.log_tail == ""


async def _until_spawned(mark: str, spawned: asyncio.Event) -> None:
    while len(family_of(mark)) < 4:  # the program, its two children, and the orphan of the double fork
        await asyncio.sleep(0.02)
    spawned.set()


def family_of(mark: str) -> list[int]:
    """Processes with that mark among their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if (
                    mark.encode() in (entry / "cmdline").read_bytes()
                    and b"confined" not in (entry / "cmdline").read_bytes()
                ):
                    found.append(int(entry.name))
    return found
