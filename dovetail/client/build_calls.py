# SPDX-License-Identifier: Apache-2.0
"""The SDK's verbs about builds: order, watch, build again, list, cancel. `async_client` adds all others."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable

from dovetail.client.build_events import followed, last_states
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
    ) -> AsyncGenerator[BuildEvent, None]:
        """Order builds and watch them; ends when all have ended. Stopping to listen cancels nothing.

        Args:
            model: Model name.
            version: 0 is the newest.
            recipes: Names of recipes; none: all that the machine can use.
            fingerprint: Machine it is for; None: the class of the live workers.
            hardware_class: Instead: key of a class that a worker or node has, or its front; "fleet" for all of them.
            objective: What is optimised: decides what is built first and how settings are searched.
            budget_s: Seconds for all of it, in which more recipes than the default ones are tried; 0: no search.
            force: Build again although a result or a failure is known.

        Raises:
            NotFoundError: No such model, version, recipe or class.
            PreconditionError: A recipe needs calibration samples and the model has none.
            UnsupportedError: A named recipe's engine cannot run the model.
        """
        order = compile_message(model, version, recipes, fingerprint, hardware_class, objective, budget_s, force)
        return followed(self._compiler.Compile, order, self.address)

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
        return await last_states(followed(self._compiler.Compile, order, self.address))

    def rebuild(self, artifact_key: str) -> AsyncGenerator[BuildEvent, None]:
        """Build an artifact again from its manifest and watch; the last message says whether the bytes are the same.

        Raises:
            NotFoundError: No such artifact.
            PreconditionError: No live worker has its tools; the text lists them.
        """
        request = compiler_pb2.RebuildRequest(artifact_key=artifact_key)
        return followed(self._compiler.Rebuild, request, self.address)

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
