# SPDX-License-Identifier: Apache-2.0
"""`python -m compiler_svc.worker`: start a build worker and run it until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from compiler_svc.backends import all_backends
from compiler_svc.collection.room import ResultRoom
from compiler_svc.jobs.base import Lease
from compiler_svc.storage import Storage, open_storage, wait_for_redis
from compiler_svc.worker.build_spec import BuildResult, BuildSpec, ChildLimits, Progress
from compiler_svc.worker.capabilities import worker_record
from compiler_svc.worker.child_failure import ChildFailure
from compiler_svc.worker.emulation.discovery import FoundEmulation, find_emulations
from compiler_svc.worker.leased_build import BuildOptions, LeasedBuild
from compiler_svc.worker.loop import LoopOptions, WorkerLoop
from compiler_svc.worker.sandbox import run_build
from compiler_svc.worker.settings import WorkerSettings
from compiler_svc.worker.signing import Signer, open_signer
from compiler_svc.worker.stopping import hurried_by_signal
from dovetail.clock import SystemClock
from dovetail.errors import DovetailError, UnavailableError
from dovetail.fingerprint import Fingerprint
from dovetail.log import configure
from dovetail.probe import measure
from dovetail.rpc.lifecycle import run_until_stopped

_log = logging.getLogger("compiler_svc.worker")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the worker; returns 0 after a stop by signal, 2 for bad settings, 1 for anything else."""
    argparse.ArgumentParser("python -m compiler_svc.worker", description=__doc__).parse_args(arguments)
    try:
        settings = WorkerSettings.from_env(os.environ)
        configure("worker", json=settings.log_json, level=settings.log_level)
    except DovetailError as exc:
        print(f"build worker: {exc}", file=sys.stderr)
        return 2
    return run_until_stopped(lambda stop: _serve(settings, stop))


async def _serve(settings: WorkerSettings, stop: asyncio.Event) -> None:
    signer = await asyncio.to_thread(open_signer, settings.signing)
    storage = open_storage(settings.store, lease_s=settings.lease_s)
    try:
        if not await wait_for_redis(storage.redis, stop, wait_s=settings.store.redis_wait_s):
            return
        await storage.guard.start()
        machine = await measure()
        emulations = await asyncio.to_thread(_find_emulations, settings, machine)
        record = worker_record(settings.worker_id, machine, all_backends(), emulations)
        record.concurrency = settings.concurrency
        with suppress(UnavailableError):  # Redis went away again; the loop waits for it
            await storage.jobs.heartbeat(record)
        _log.info(
            "worker.ready id=%s engines=%s hardware_class=%s emulates=%s",
            record.id, ",".join(record.engines) or "none", record.hardware_class,
            ",".join(found.cpu.name for found in emulations) or "none",
        )  # fmt: skip
        options = LoopOptions(
            concurrency=settings.concurrency, heartbeat_s=settings.heartbeat_s, drain_s=settings.drain_s
        )
        loop = WorkerLoop(
            record, storage.jobs, task_for=_task_maker(settings, storage, machine, emulations, signer), options=options
        )
        async with hurried_by_signal(stop) as hurry:
            await loop.run(stop, hurry)
        _log.info("worker.stopped id=%s", record.id)
    finally:
        await storage.aclose()


def _find_emulations(settings: WorkerSettings, machine: Fingerprint) -> tuple[FoundEmulation, ...]:
    root = "" if settings.arm64_root is None else str(settings.arm64_root)
    return find_emulations(settings.emulate, machine, all_backends(), root)


def _task_maker(
    settings: WorkerSettings,
    storage: Storage,
    machine: Fingerprint,
    emulations: Sequence[FoundEmulation],
    signer: Signer,
) -> Callable[[Lease], LeasedBuild]:
    options = BuildOptions(
        machine=machine,
        scratch=settings.scratch,
        threads=settings.threads or machine.facts.usable_cores,
        lease_s=settings.lease_s,
        measure_budget_s=settings.measure_budget_s,
        limits=settings.limits,
        emulations={found.cpu.name: found.cpu for found in emulations},
        emulated_samples=settings.emulated_samples,
        plugins=settings.plugins,
        signer=signer,
        chunker=settings.chunker,
    )

    def make(lease: Lease) -> LeasedBuild:
        return LeasedBuild(
            lease,
            index=storage.index,
            jobs=storage.jobs,
            chunks=storage.chunks,
            run=_run_child,
            options=options,
            clock=SystemClock(),
            kept=storage.kept,
            room=ResultRoom(storage.quotas, storage.pins),
        )

    return make


async def _run_child(
    directory: Path, spec: BuildSpec, limits: ChildLimits, on_progress: Callable[[Progress], None]
) -> BuildResult | ChildFailure:
    return await run_build(directory, spec, limits=limits, on_progress=on_progress)


if __name__ == "__main__":
    sys.exit(main())
