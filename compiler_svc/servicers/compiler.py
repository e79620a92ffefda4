# SPDX-License-Identifier: Apache-2.0
"""`dovetail.v1.Compiler`: message in, message out; who does the work is named in `__init__`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import grpc.aio

from compiler_svc.orders import BuildOrders
from compiler_svc.queue_desk import QueueDesk
from compiler_svc.rebuilds import Rebuilds
from compiler_svc.staleness import Staleness
from dovetail.pb.v1 import compiler_pb2 as pb
from dovetail.pb.v1.compiler_pb2_grpc import CompilerServicer as CompilerServicerBase
from dovetail.rpc.interceptor import Context
from dovetail.rpc.lifecycle import until

SERVICE = "dovetail.v1.Compiler"
_STOPPING = "this server is stopping; the builds go on, ask another or ask again"


class CompilerServicer(CompilerServicerBase):
    """See protos/dovetail/v1/compiler.proto."""

    def __init__(
        self,
        orders: BuildOrders,
        rebuilds: Rebuilds,
        staleness: Staleness,
        queue: QueueDesk,
        *,
        stopping: asyncio.Event,
    ) -> None:
        self._orders = orders
        self._queue = queue
        self._rebuilds = rebuilds
        self._staleness = staleness
        self._stopping = stopping

    async def Compile(  # noqa: N802 - the protocol's names
        self, request: pb.CompileRequest, context: Context
    ) -> AsyncIterator[pb.BuildEvent]:
        """Order builds and follow them."""
        await _answer(context)
        async for event in until(self._stopping, self._orders.compile(request), why=_STOPPING):
            yield event

    async def WatchBuilds(  # noqa: N802
        self, request: pb.WatchBuildsRequest, context: Context
    ) -> AsyncIterator[pb.BuildEvent]:
        """Follow builds."""
        await _answer(context)
        async for event in until(self._stopping, self._orders.watch(request), why=_STOPPING):
            yield event

    async def Rebuild(  # noqa: N802
        self, request: pb.RebuildRequest, context: Context
    ) -> AsyncIterator[pb.BuildEvent]:
        """Build an artifact again from its manifest and follow it."""
        following = self._rebuilds.rebuild(request.artifact_key, request.priority)
        async for event in until(self._stopping, following, why=_STOPPING):
            yield event

    async def ListStale(self, request: pb.ListStaleRequest, context: Context) -> pb.ListStaleResponse:  # noqa: N802
        """Artifacts whose tools are superseded."""
        return pb.ListStaleResponse(artifacts=await self._staleness.stale(request.model, request.version))

    async def GetBuild(self, request: pb.GetBuildRequest, context: Context) -> pb.Build:  # noqa: N802
        """One build."""
        return await self._orders.get(request.artifact_key)

    async def ListBuilds(self, request: pb.ListBuildsRequest, context: Context) -> pb.ListBuildsResponse:  # noqa: N802
        """All builds, or those of one model; layer reports come with GetBuild only, many would not fit a message."""
        reply = pb.ListBuildsResponse(builds=await self._orders.all_builds(request.model, request.version))
        for build in reply.builds:
            build.ClearField("layers_json")
            build.ClearField("log_tail")
        return reply

    async def CancelBuild(self, request: pb.CancelBuildRequest, context: Context) -> pb.Build:  # noqa: N802
        """Ask for a build to stop."""
        return await self._orders.cancel(request.artifact_key)

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:  # noqa: N802
        """The queue, or the dead jobs."""
        return await self._queue.jobs(request)

    async def RetryJobs(self, request: pb.RetryJobsRequest, context: Context) -> pb.RetryJobsResponse:  # noqa: N802
        """Order failed jobs again."""
        return await self._queue.retry(request)

    async def ListWorkers(  # noqa: N802
        self, request: pb.ListWorkersRequest, context: Context
    ) -> pb.ListWorkersResponse:
        """Live workers."""
        return await self._queue.workers()


async def _answer(context: Context) -> None:
    """Say that the call has arrived: there may be nothing to tell for long, and who resumes wants to know."""
    with suppress(grpc.aio.BaseError):  # the caller is gone; sending the first event finds that, too
        await context.send_initial_metadata(())
