# SPDX-License-Identifier: Apache-2.0
"""The SDK's verbs about builds: order, watch, build again, list, cancel, the queue. `async_client` adds all others."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable

from dovetail.client.build_events import Following, OnInterrupted, last_states
from dovetail.client.build_messages import priority_message, read_jobs, read_worker
from dovetail.client.build_results import BuildPriority, JobList, Worker
from dovetail.client.messages import compile_message, read_build, read_stale
from dovetail.client.results import Build, BuildEvent, StaleArtifact
from dovetail.fingerprint import Fingerprint
from dovetail.offer import Objective
from dovetail.pb.v1 import compiler_pb2
from dovetail.pb.v1.compiler_pb2_grpc import CompilerStub
from dovetail.rpc.status import translated_errors

CALL_TIMEOUT_S = 30.0
"""Limit of a short call; builds and pushes have none of their own."""


class BuildCalls:
    """Verbs about builds. Belongs to the event loop it is used in; many calls may run at once.

    Attributes:
        address: host:port of the compiler service.
    """

    def __init__(self, address: str, compiler: CompilerStub) -> None:
        self.address = address
        self._compiler = compiler

    def compile(
        self,
        model: str,
        *,
        version: int = 0,
        recipes: Iterable[str] = (),
        fingerprint: Fingerprint | None = None,
        hardware_class: str = "",
        objective: Objective = Objective.LATENCY,
        budget_s: float = 0.0,
        force: bool = False,
        priority: BuildPriority = BuildPriority.INTERACTIVE,
        with_log: bool = False,
        on_interrupted: OnInterrupted | None = None,
    ) -> AsyncGenerator[BuildEvent, None]:
        """Order builds and watch them; ends when all have ended. Stopping to listen cancels nothing.

        A service that restarts meanwhile is waited for, and the events go on where they broke off.

        Args:
            model: Model name.
            version: 0 is the newest.
            recipes: Names of recipes; none: all that the machine can use.
            fingerprint: Machine it is for; None: the class of the live workers.
            hardware_class: Instead: key of a class that a worker or node has, or its front; "fleet" for all of them.
            objective: What is optimised: decides what is built first and how settings are searched.
            budget_s: Seconds for all of it, in which more recipes than the default ones are tried; 0: no search.
            force: Build again although a result or a failure is known.
            priority: Who waits for it.
            with_log: Events bring the end of the compiler's log when it changed.
            on_interrupted: Told once when the service is lost and once when it is back; called on the event loop.

        Raises:
            NotFoundError: No such model, version, recipe or class.
            PreconditionError: A recipe needs calibration samples and the model has none.
            UnsupportedError: A named recipe's engine cannot run the model.
            UnavailableError: The service does not answer, or was lost for 5 minutes.
        """
        order = compile_message(model, version, recipes, fingerprint, hardware_class, objective, budget_s, force)
        order.priority, order.with_log = priority_message(priority), with_log
        return Following(self._compiler, self.address, order, on_interrupted).events()

    async def build_all(
        self,
        model: str,
        *,
        version: int = 0,
        recipes: Iterable[str] = (),
        fingerprint: Fingerprint | None = None,
        hardware_class: str = "",
        objective: Objective = Objective.LATENCY,
        budget_s: float = 0.0,
        force: bool = False,
    ) -> tuple[Build, ...]:
        """Like `compile`, and wait: the final state of every build, failed ones included."""
        order = compile_message(model, version, recipes, fingerprint, hardware_class, objective, budget_s, force)
        return await last_states(Following(self._compiler, self.address, order, None).events())

    def watch_builds(
        self,
        artifact_keys: Iterable[str],
        *,
        after: str = "",
        with_log: bool = False,
        on_interrupted: OnInterrupted | None = None,
    ) -> AsyncGenerator[BuildEvent, None]:
        """Watch builds that somebody ordered until all have ended; across restarts of the service, like `compile`.

        Args:
            artifact_keys: Which.
            after: Id of an event: begin with what happened since, not with the current states.
            with_log: Events bring the end of the compiler's log when it changed.
            on_interrupted: Told once when the service is lost and once when it is back; called on the event loop.

        Raises:
            NotFoundError: There is no such build.
        """
        request = compiler_pb2.WatchBuildsRequest(
            artifact_keys=list(artifact_keys), after_event_id=after, with_log=with_log
        )
        return Following(self._compiler, self.address, request, on_interrupted).events()

    def rebuild(
        self, artifact_key: str, *, on_interrupted: OnInterrupted | None = None
    ) -> AsyncGenerator[BuildEvent, None]:
        """Build an artifact again from its manifest and watch; the last message says whether the bytes are the same.

        It does not say so if the service restarted meanwhile.

        Raises:
            NotFoundError: No such artifact.
            PreconditionError: No live worker has its tools; the text lists them.
        """
        request = compiler_pb2.RebuildRequest(artifact_key=artifact_key)
        return Following(self._compiler, self.address, request, on_interrupted).events()

    async def stale(self, model: str = "", version: int = 0) -> tuple[StaleArtifact, ...]:
        """Artifacts whose tools are older than a live worker's."""
        request = compiler_pb2.ListStaleRequest(model=model, version=version)
        with translated_errors(self.address):
            reply = await self._compiler.ListStale(request, timeout=CALL_TIMEOUT_S)
        return tuple(read_stale(item) for item in reply.artifacts)

    async def build(self, artifact_key: str) -> Build:
        """One build.

        Raises:
            NotFoundError: No such build.
        """
        request = compiler_pb2.GetBuildRequest(artifact_key=artifact_key)
        with translated_errors(self.address):
            return read_build(await self._compiler.GetBuild(request, timeout=CALL_TIMEOUT_S))

    async def builds(self, model: str = "", version: int = 0) -> tuple[Build, ...]:
        """All builds, or those of one model; newest first."""
        request = compiler_pb2.ListBuildsRequest(model=model, version=version)
        with translated_errors(self.address):
            reply = await self._compiler.ListBuilds(request, timeout=CALL_TIMEOUT_S)
        return tuple(read_build(item) for item in reply.builds)

    async def cancel(self, artifact_key: str) -> Build:
        """Ask for a build to stop.

        Raises:
            NotFoundError: No such build.
            PreconditionError: It has ended.
        """
        request = compiler_pb2.CancelBuildRequest(artifact_key=artifact_key)
        with translated_errors(self.address):
            return read_build(await self._compiler.CancelBuild(request, timeout=CALL_TIMEOUT_S))

    async def jobs(self, *, hardware_class: str = "", dead: bool = False) -> JobList:
        """The queue: what runs, then what waits in the order in which it would be taken; or what died.

        Args:
            hardware_class: Only jobs for that class, or the front of its key.
            dead: Jobs that ended for infrastructure, such as three lost workers, instead.
        """
        request = compiler_pb2.ListJobsRequest(hardware_class=hardware_class, dead=dead)
        with translated_errors(self.address):
            return read_jobs(await self._compiler.ListJobs(request, timeout=CALL_TIMEOUT_S))

    async def retry_jobs(self, artifact_keys: Iterable[str] = (), *, all_dead: bool = False) -> tuple[Build, ...]:
        """Order jobs again that failed or were cancelled, as they were ordered.

        Raises:
            NotFoundError: There is no such job.
            PreconditionError: A named one has not ended, or is ready.
        """
        request = compiler_pb2.RetryJobsRequest(artifact_keys=list(artifact_keys), all_dead=all_dead)
        with translated_errors(self.address):
            reply = await self._compiler.RetryJobs(request, timeout=CALL_TIMEOUT_S)
        return tuple(read_build(item) for item in reply.builds)

    async def workers(self) -> tuple[Worker, ...]:
        """Live build workers: what they can build and what they build."""
        with translated_errors(self.address):
            reply = await self._compiler.ListWorkers(compiler_pb2.ListWorkersRequest(), timeout=CALL_TIMEOUT_S)
        return tuple(read_worker(item) for item in reply.workers)
