# SPDX-License-Identifier: Apache-2.0
"""One build, from a lease to its end: fetch the model, run the child, publish or fail.

The lease is renewed beside the work; when it is lost or the build was cancelled, the child is killed and nothing is
published. Which job comes next is the loop's business, what happens in the child is `child`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from compiler_svc.backends import all_kept
from compiler_svc.backends.base import Plugin
from compiler_svc.collection.room import ResultRoom
from compiler_svc.index import Index
from compiler_svc.intake.limits import WEIGHTS_FILE
from compiler_svc.jobs.base import JobQueue, Lease
from compiler_svc.kept_files import Given, KeptFiles
from compiler_svc.scratch import scratch_directory
from compiler_svc.worker.build_report import BuildReport
from compiler_svc.worker.build_spec import (
    MAX_GATE_SAMPLES,
    BuildResult,
    BuildSpec,
    ChildLimits,
    EmulatedCpu,
    Progress,
)
from compiler_svc.worker.child_failure import ChildFailure, FailureKind
from compiler_svc.worker.known_figures import known_figures
from compiler_svc.worker.publish import manifest_of, store_result
from compiler_svc.worker.signing import Signer
from dovetail.clock import Clock
from dovetail.errors import DovetailError, IntegrityError, NotFoundError, OverLimitError, UnavailableError
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import hardware_class
from dovetail.pb.v1 import compiler_pb2 as pb
from dovetail.pb.v1.registry_pb2 import (
    FILE_ROLE_CALIBRATION,
    FILE_ROLE_MODEL,
    FILE_ROLE_PROGRAM,
    FILE_ROLE_VALIDATION,
    FILE_ROLE_WEIGHTS,
)
from dovetail.pb.v1.storage_pb2 import ModelRecord
from dovetail.store.base import ChunkStore
from dovetail.store.chunking import Chunker, fixed
from dovetail.store.files import load_file
from dovetail.wire import (
    benchmark_bytes,
    gate_bytes,
    model_facts,
    read_chunk,
    read_contract,
    read_objective,
    read_policy,
    read_range,
    read_recipe,
    read_tensor_spec,
)

_log = logging.getLogger(__name__)

BuildRunner = Callable[
    [Path, BuildSpec, ChildLimits, Callable[[Progress], None]], Awaitable[BuildResult | ChildFailure]
]
"""Builds, gates and measures in a child process; when cancelled it kills the child before it returns."""

_FILES = {
    FILE_ROLE_MODEL: "model.onnx",
    FILE_ROLE_WEIGHTS: WEIGHTS_FILE,
    FILE_ROLE_CALIBRATION: "calibration.npz",
    FILE_ROLE_VALIDATION: "validation.npz",
    FILE_ROLE_PROGRAM: "program.pt2",
}
_TAKEN = (pb.BUILD_PHASE_QUEUED, pb.BUILD_PHASE_UNROUTED, pb.BUILD_PHASE_FAILED, pb.BUILD_PHASE_CANCELLED)
"""Phases that a build is in when it is not this worker's any more; READY it is by this worker's own doing."""

_KINDS = {
    FailureKind.DETERMINISTIC: pb.BUILD_FAILURE_KIND_DETERMINISTIC,
    FailureKind.RESOURCE: pb.BUILD_FAILURE_KIND_RESOURCE,
    FailureKind.INFRASTRUCTURE: pb.BUILD_FAILURE_KIND_INFRASTRUCTURE,
}
MAX_LOG_TAIL = 4096
"""Bytes of a child's log that are kept with a failure, as compiler.proto says."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How this worker builds.

    Attributes:
        machine: Its fingerprint.
        scratch: Directory for builds.
        threads: Threads of one build.
        lease_s: The queue's lease; it is renewed every quarter.
        measure_budget_s: Seconds spent on one benchmark.
        limits: What a child may use.
        emulations: CPUs that the gate can run under here, by the name that jobs have for them.
        emulated_samples: Samples that such a gate runs at most.
        plugins: Native code that recipes may name.
        signer: Signs the manifests.
        chunker: Where files are cut.
    """

    machine: Fingerprint
    scratch: Path
    threads: int
    lease_s: float
    measure_budget_s: float
    limits: ChildLimits
    emulations: Mapping[str, EmulatedCpu] = field(default_factory=dict)
    emulated_samples: int = 100
    plugins: tuple[Plugin, ...] = ()
    signer: Signer = field(default_factory=Signer)
    chunker: Chunker = field(default_factory=fixed)


class LeasedBuild:
    """Works on one lease; used once."""

    def __init__(
        self,
        lease: Lease,
        *,
        index: Index,
        jobs: JobQueue,
        chunks: ChunkStore,
        run: BuildRunner,
        options: BuildOptions,
        clock: Clock,
        kept: KeptFiles | None = None,
        room: ResultRoom | None = None,
    ) -> None:
        self._lease = lease
        self._index = index
        self._jobs = jobs
        self._chunks = chunks
        self._run = run
        self._options = options
        self._clock = clock
        self._kept = kept
        self._room = room
        self._report = BuildReport(lease, jobs)
        self._state = self._report.state

    async def work(self) -> None:
        """Build and report the end; returns also when the lease was lost. Cancelling it kills the child
        and gives the job back.

        Raises:
            UnavailableError: The job queue did not answer until the lease was over.
        """
        building = asyncio.create_task(self._build())
        beside = (self._keep_lease(building), self._mind_end(building), self._report.run(lambda: self._lost(building)))
        helpers = [asyncio.create_task(helper) for helper in beside]
        try:
            outcome = await building
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():  # the worker is stopping; else the lease keeper did it
                await self._give_back()
                raise
            _log.info("build.stopped key=%s why=cancelled_or_lease_lost", self._lease.job.artifact_key)
            return
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
        if isinstance(outcome, ChildFailure):
            await self._fail(outcome)

    async def _build(self) -> ChildFailure | None:
        job = self._lease.job
        try:
            record = await self._index.model(job.model, job.version)
            async with scratch_directory(self._options.scratch, "build-") as directory:
                await self._materialise(record, directory)
                here = hardware_class(self._options.machine).key
                known = await known_figures(self._index, job.model, record.model.version, here)
                spec = replace(self._spec(record), known=known)
                key, given = await self._fetch_kept(spec, directory)
                spec = replace(spec, kept_files=given.files)
                outcome = await self._run_child(directory, spec)
                if isinstance(outcome, ChildFailure):
                    return outcome
                async with self._storing(record, outcome):
                    await self._publish(record, outcome)
                if self._kept is not None and outcome.keep is not None:
                    await self._kept.keep(spec.recipe.engine, key, outcome.keep, given)
                return None
        except NotFoundError as exc:  # pushing the model again brings it back
            return _failure(FailureKind.INFRASTRUCTURE, "input_missing", exc)
        except OverLimitError as exc:
            return _failure(FailureKind.RESOURCE, "no_room", exc)
        except (UnavailableError, IntegrityError) as exc:
            return _failure(FailureKind.INFRASTRUCTURE, "store", exc)
        except DovetailError as exc:
            return _failure(FailureKind.DETERMINISTIC, exc.code.value, exc)

    async def _run_child(self, directory: Path, spec: BuildSpec) -> BuildResult | ChildFailure:
        """Run the child and tell the end of its log meanwhile."""
        telling = asyncio.create_task(self._report.follow_log(directory))
        try:
            return await self._run(directory, spec, self._limits(spec), self._report.heard)
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
            self._state.log_tail = ""

    async def _materialise(self, record: ModelRecord, directory: Path) -> None:
        for file in record.files:
            if file.role not in _FILES:  # what only intake needed
                continue
            chunks = [read_chunk(chunk) for chunk in file.chunks]
            await load_file(self._chunks, chunks, directory / _FILES[file.role], file.digest)

    async def _fetch_kept(self, spec: BuildSpec, directory: Path) -> tuple[str, Given]:
        """The key of what this build may share with others, and what they kept; never what was kept for another key."""
        module = all_kept().get(spec.recipe.engine)
        if module is None or self._kept is None:
            return "", Given()
        key = module.kept_key(spec.recipe, spec.contract, self._options.machine)
        return key, await self._kept.fetch(spec.recipe.engine, key, directory)

    def _limits(self, spec: BuildSpec) -> ChildLimits:
        """CUDA reserves addresses for more memory than there is, so only what is resident can be limited."""
        return replace(self._options.limits, address_space=spec.recipe.device != "cuda")

    def _spec(self, record: ModelRecord) -> BuildSpec:
        job, model = self._lease.job, record.model
        present = {file.role for file in record.files}
        emulation = self._emulation()
        slow = emulation is not None and emulation.program != ""
        return BuildSpec(
            recipe=read_recipe(job.recipe),
            contract=read_contract(job.contract_json),
            inputs=tuple(read_tensor_spec(spec) for spec in model.inputs),
            outputs=tuple(read_tensor_spec(spec) for spec in model.outputs),
            facts=model_facts(model),
            hardware_class=hardware_class(self._options.machine).key,
            cpu_features=self._options.machine.facts.cpu_features,
            threads=self._options.threads,
            policy=read_policy(model.policy),
            model_file=_FILES[FILE_ROLE_MODEL],
            calibration_file=_FILES[FILE_ROLE_CALIBRATION] if FILE_ROLE_CALIBRATION in present else "",
            validation_file=_FILES[FILE_ROLE_VALIDATION] if FILE_ROLE_VALIDATION in present else "",
            measure_budget_s=job.measure_budget_s or self._options.measure_budget_s,
            objective=str(read_objective(job.objective)),
            mixed_budget_s=self._options.limits.wall_s / 3,  # the build before it and the last try may take as long
            ranges=tuple(read_range(item) for item in model.ranges),
            program_file=_FILES[FILE_ROLE_PROGRAM] if FILE_ROLE_PROGRAM in present else "",
            plugins=self._options.plugins,
            emulation=emulation,
            max_gate_samples=self._options.emulated_samples if slow else MAX_GATE_SAMPLES,
        )

    def _emulation(self) -> EmulatedCpu | None:
        name = self._lease.job.emulation
        if not name:
            return None
        cpu = self._options.emulations.get(name)
        if cpu is None:  # it is routed by what workers advertise, so this one has changed since
            raise UnavailableError(f"the gate is to run under {name!r}, which this worker does not emulate any more")
        return cpu

    def _storing(self, record: ModelRecord, result: BuildResult) -> AbstractAsyncContextManager[None]:
        """Room in the tenant's quota for the files, which stay until a manifest names them."""
        if self._room is None:
            return nullcontext()
        size_bytes = sum(file.path.stat().st_size for file in result.files)
        return self._room.taken(self._lease.job, self._lease.fence, record, size_bytes)

    async def _publish(self, record: ModelRecord, result: BuildResult) -> None:
        self._state.phase = pb.BUILD_PHASE_PUBLISHING
        self._state.message = "storing the files"
        self._state.gate_json = gate_bytes(result.gate)
        self._state.benchmark_json = benchmark_bytes(next(iter(result.benchmarks), None))
        self._report.tell()
        files = await store_result(self._chunks, result, self._options.chunker)
        manifest = manifest_of(
            self._lease.job, record, result, files, machine=self._options.machine, built_at_ms=self._clock.wall_ms()
        )
        self._state.size_bytes = manifest.size_bytes
        self._state.message = "published"
        data = manifest.to_bytes()
        envelope = await asyncio.to_thread(self._options.signer.seal, data)
        accepted = await self._insist(lambda: self._jobs.publish(self._lease, data, self._state, envelope=envelope))
        _log.info(
            "build.published key=%s recipe=%s size_bytes=%d accepted=%s",
            manifest.artifact_key, manifest.recipe.name, manifest.size_bytes, accepted,
        )  # fmt: skip

    async def _fail(self, failure: ChildFailure) -> None:
        self._state.gate_json = gate_bytes(failure.gate)
        self._state.benchmark_json = benchmark_bytes(failure.benchmark)
        self._state.layers_json = failure.layers.to_bytes() if failure.layers else b""
        self._state.size_bytes = failure.size_bytes
        self._state.message = failure.message
        message = pb.BuildFailure(
            kind=_KINDS[failure.kind],
            code=failure.code,
            message=failure.message,
            log_tail=failure.log_tail.encode()[-MAX_LOG_TAIL:].decode(errors="replace"),
        )
        accepted = await self._insist(lambda: self._jobs.fail(self._lease, message, self._state))
        _log.warning(
            "build.failed key=%s recipe=%s kind=%s code=%s accepted=%s why=%r",
            self._lease.job.artifact_key, self._lease.job.recipe.name, failure.kind.value, failure.code, accepted,
            failure.message[:300],
        )  # fmt: skip

    async def _give_back(self) -> None:
        try:
            given = await self._jobs.release(self._lease)
        except UnavailableError as exc:  # then the lease runs out by itself
            _log.warning("build.lease_left key=%s why=%r", self._lease.job.artifact_key, str(exc))
        else:
            _log.info("build.given_back key=%s accepted=%s", self._lease.job.artifact_key, given)

    async def _insist(self, call: Callable[[], Awaitable[bool]]) -> bool:
        """Repeat a call that the queue makes harmless to repeat, until the lease would be over anyway."""
        deadline_s = self._clock.monotonic_s() + self._options.lease_s
        while True:
            try:
                return await call()
            except UnavailableError as exc:
                if self._clock.monotonic_s() >= deadline_s:
                    raise
                _log.warning("build.report_again key=%s why=%r", self._lease.job.artifact_key, str(exc))
                await asyncio.sleep(min(1.0, self._options.lease_s / 10))

    async def _keep_lease(self, building: asyncio.Task[ChildFailure | None]) -> None:
        while True:
            await asyncio.sleep(self._options.lease_s / 4)
            try:
                held = await self._jobs.renew(self._lease)
            except DovetailError as exc:  # the fence decides at the end; a long outage ends in a refused publish
                _log.warning("build.lease_unknown key=%s why=%r", self._lease.job.artifact_key, str(exc))
                continue
            if not held:
                self._lost(building)
                return

    async def _mind_end(self, building: asyncio.Task[ChildFailure | None]) -> None:
        """Stop as soon as the queue tells that somebody else ended the build or has it; renewing finds it later."""
        key = self._lease.job.artifact_key
        try:
            async for event in self._jobs.watch([key]):
                if event.build.phase in _TAKEN and not await self._jobs.renew(self._lease):
                    self._lost(building)
                    return
        except DovetailError as exc:
            _log.debug("build.unwatched key=%s why=%r", key, str(exc))

    def _lost(self, building: asyncio.Task[ChildFailure | None]) -> None:
        """The lease is another's, or nobody's. What is being published goes on: there the fence decides."""
        if self._state.phase != pb.BUILD_PHASE_PUBLISHING:
            building.cancel()


def _failure(kind: FailureKind, code: str, error: DovetailError) -> ChildFailure:
    return ChildFailure(kind, code, str(error), error=error.code)
