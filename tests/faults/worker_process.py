# SPDX-License-Identifier: Apache-2.0
"""The real build worker, with a scripted compiler in its child and a trail of what it did.

`main` is `python -m compiler_svc.worker` but for: the machine's fingerprint (recorded, so that nothing is measured),
the child's program, times that suit tests, and what the environment asks for below. Loop, lease keeping, sandbox,
storing and publishing are production's.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compiler_svc.storage
import compiler_svc.worker.__main__ as worker_main
from compiler_svc.jobs.base import Lease
from compiler_svc.jobs.policy import QueuePolicy
from compiler_svc.jobs.redis_jobs import RedisJobQueue
from compiler_svc.worker.build_spec import BuildResult, BuildSpec, ChildLimits, Progress
from compiler_svc.worker.child_failure import ChildFailure
from compiler_svc.worker.loop import LoopOptions
from compiler_svc.worker.sandbox import run_task
from dovetail.digest import sha256_hex
from dovetail.fingerprint import Fingerprint
from dovetail.gate import GateReport
from dovetail.pb.v1.compiler_pb2 import Build, BuildFailure
from dovetail.pb.v1.storage_pb2 import WorkerRecord
from dovetail.store.redis_connection import RedisConnection
from tests.fakes.records import figures
from tests.faults import trail
from tests.faults.model_orders import ModelOrders

MACHINE = Path(__file__).parents[1] / "fingerprints" / "xeon-skylake-no-vnni.json"
CHILD = Path(__file__).with_name("scripted_child.py")
POLICY = QueuePolicy(worker_ttl_s=2.0, retry_after_s=0.2)
DIE_AT, SLEEP_AT = "FAULT_DIE_AT", "FAULT_SLEEP_AT"
HOLD_DIR, CLOCK_SHIFT = "FAULT_HOLD_DIR", "FAULT_CLOCK_SHIFT_S"


def main() -> int:
    """Run the worker until it is told to stop, or dies as it was told to."""
    shift_clock(float(os.environ.get(CLOCK_SHIFT, "0")))
    machine = Fingerprint.from_bytes(MACHINE.read_bytes())

    async def recorded() -> Fingerprint:
        return machine

    worker_main.measure = recorded
    worker_main._run_child = _run_child
    worker_main.LoopOptions = functools.partial(LoopOptions, retry_s=0.1, claim_wait_s=1.0)  # type: ignore[misc,assignment]
    compiler_svc.storage.RedisJobQueue = TrailedJobs  # type: ignore[misc]
    for variable, number in ((DIE_AT, signal.SIGKILL), (SLEEP_AT, signal.SIGSTOP)):
        if os.environ.get(variable):
            signal_at_step(number, int(os.environ[variable]))
    return worker_main.main([])


class TrailedJobs(RedisJobQueue):
    """The real queue with the suite's times; says in the trail what came of each call."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"policy": POLICY, **options})
        self._trail = Path(os.environ[trail.TRAIL_VARIABLE])

    async def claim(self, worker: WorkerRecord, *, wait_s: float) -> Lease | None:
        lease = await super().claim(worker, wait_s=wait_s)
        if lease is not None:
            self._tell("claimed", lease)
            _begun.set()
        return lease

    async def publish(self, lease: Lease, manifest: bytes, build: Build, *more: Any, **options: Any) -> bool:
        accepted = await super().publish(lease, manifest, build, *more, **options)
        self._tell("published" if accepted else "refused", lease, sha256_hex(manifest))
        return accepted

    async def fail(self, lease: Lease, failure: BuildFailure, build: Build) -> bool:
        accepted = await super().fail(lease, failure, build)
        self._tell("failed" if accepted else "fail_refused", lease)
        return accepted

    async def release(self, lease: Lease) -> bool:
        accepted = await super().release(lease)
        self._tell("released" if accepted else "release_refused", lease)
        return accepted

    def _tell(self, what: str, lease: Lease, digest: str = "") -> None:
        trail.write(self._trail, what, lease.job.artifact_key, lease.fence, lease.attempt, lease.worker, digest)


async def _run_child(
    directory: Path, spec: BuildSpec, limits: ChildLimits, on_progress: Callable[[Progress], None]
) -> BuildResult | ChildFailure:
    """The scripted child in the real sandbox."""
    orders = ModelOrders.read(directory / spec.model_file)
    if orders.behaviour == "kill_worker":
        os.kill(os.getpid(), signal.SIGKILL)
    behaviour = orders.behaviour
    if orders.hold and _taken(orders.hold):
        behaviour = "hang"
    answer = {"behaviour": behaviour, "phase": orders.phase, "build_ms": orders.build_ms, "build": _result(spec)}
    (directory / "answer.json").write_text(json.dumps(answer))
    outcome = await run_task(
        directory, spec, limits=limits, on_progress=on_progress, threads=1, program=("-I", "-S", str(CHILD))
    )
    assert isinstance(outcome, BuildResult | ChildFailure)
    return outcome


def _taken(name: str) -> bool:
    """True for the first who asks."""
    try:
        (Path(os.environ[HOLD_DIR]) / name).unlink()
    except FileNotFoundError:
        return False
    return True


def _result(spec: BuildSpec) -> dict[str, Any]:
    """The result document that the child will give."""
    return {
        "files": [
            {"name": "model.onnx", "role": "model", "file": "model.onnx"},
            {"name": "goldens.npz", "role": "goldens", "file": "goldens.npz"},
        ],
        "recipe": spec.recipe.to_json(),
        "contract": spec.contract.to_json(),
        "gate": GateReport(True, spec.recipe.precision, 4).to_json(),
        "benchmarks": [figures(spec.hardware_class).to_json()],
        "verified": "native",
        "labels": {},
        "max_batch_size": 8,
        "toolchain": {"script": "1"},
    }


# --- dying or sleeping at an exact step

_begun = threading.Event()


def signal_at_step(signal_number: int, step_number: int) -> None:
    """Kill or stop this process at the n-th thing it changes outside itself after its first claim.

    Counted are renames (that is how every durable file comes to be) before they are done, and scripts in Redis both
    before they are sent and after they were answered: "not done", "done", and "done but not told" all occur.
    """
    counted = [0]
    lock = threading.Lock()

    def step() -> None:
        if not _begun.is_set():
            return
        with lock:
            counted[0] += 1
            if counted[0] == step_number:
                os.kill(os.getpid(), signal_number)
                time.sleep(0.05)  # the signal may take a moment to be delivered

    sys.addaudithook(lambda event, _: step() if event == "os.rename" else None)
    run = RedisConnection.run

    async def counting(self: RedisConnection, *arguments: Any, **options: Any) -> Any:
        step()
        reply = await run(self, *arguments, **options)
        step()
        return reply

    RedisConnection.run = counting  # type: ignore[method-assign]


# --- a wrong clock


def shift_clock(seconds: float) -> None:
    """Move this process' wall clock; its monotonic clock stays, as after a jump of the real one."""
    if not seconds:
        return
    true_s, true_ns = time.time, time.time_ns
    time.time = lambda: true_s() + seconds
    time.time_ns = lambda: true_ns() + int(seconds * 1e9)
