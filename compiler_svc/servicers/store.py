# SPDX-License-Identifier: Apache-2.0
"""`dovetail.v1.Store`: message in, message out; the work is `compiler_svc.collection`'s."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from compiler_svc.collection.following import followed
from compiler_svc.collection.parts import StoreParts
from compiler_svc.collection.progress import OnProgress, Progress
from compiler_svc.collection.store_messages import (
    collect_message,
    progress_message,
    rebuild_message,
    stats_message,
    usage_message,
    verify_message,
)
from compiler_svc.collection.verify import VerifyOrder
from dovetail.pb.v1 import store_pb2 as pb
from dovetail.pb.v1.store_pb2_grpc import StoreServicer as StoreServicerBase
from dovetail.rpc.interceptor import Context
from dovetail.rpc.lifecycle import until

SERVICE = "dovetail.v1.Store"
_STOPPING = "this server is stopping; what was done stays done, ask again to go on"


class StoreServicer(StoreServicerBase):
    """See protos/dovetail/v1/store.proto."""

    def __init__(self, parts: StoreParts, *, stopping: asyncio.Event) -> None:
        self._parts = parts
        self._stopping = stopping

    async def GetStats(  # noqa: N802 - the protocol's names
        self, request: pb.GetStatsRequest, context: Context
    ) -> AsyncIterator[pb.StatsEvent]:
        """What is stored."""
        work = followed(self._parts.bookkeeper.figures)
        async for step in until(self._stopping, work, why=_STOPPING):
            if isinstance(step, Progress):
                yield pb.StatsEvent(progress=progress_message(step))
            else:
                yield pb.StatsEvent(stats=stats_message(step))

    async def Verify(  # noqa: N802
        self, request: pb.VerifyRequest, context: Context
    ) -> AsyncIterator[pb.VerifyEvent]:
        """Check it."""
        rate = request.bytes_per_s or self._parts.settings.verify_bytes_per_s
        order = VerifyOrder(request.sample or 1.0, request.after, rate)
        work = followed(lambda on_progress: self._parts.verifier.verify(order, on_progress))
        async for step in until(self._stopping, work, why=_STOPPING):
            if isinstance(step, Progress):
                yield pb.VerifyEvent(progress=progress_message(step))
            else:
                yield pb.VerifyEvent(report=verify_message(step))

    async def Collect(  # noqa: N802
        self, request: pb.CollectRequest, context: Context
    ) -> AsyncIterator[pb.CollectEvent]:
        """Take away what nobody needs."""
        collector = self._parts.collector
        work = followed(lambda on_progress: collector.collect(dry_run=request.dry_run, on_progress=on_progress))
        async for step in until(self._stopping, work, why=_STOPPING):
            if isinstance(step, Progress):
                yield pb.CollectEvent(progress=progress_message(step))
            else:
                yield pb.CollectEvent(report=collect_message(step, grace_s=collector.grace_s))

    async def RebuildIndex(  # noqa: N802
        self, request: pb.RebuildIndexRequest, context: Context
    ) -> AsyncIterator[pb.RebuildIndexEvent]:
        """Fill the index again."""
        async for step in until(self._stopping, followed(self._rebuilt), why=_STOPPING):
            if isinstance(step, Progress):
                yield pb.RebuildIndexEvent(progress=progress_message(step))
            else:
                yield pb.RebuildIndexEvent(report=step)

    async def SetQuota(self, request: pb.SetQuotaRequest, context: Context) -> pb.TenantUsage:  # noqa: N802
        """Change a tenant's limit."""
        limit = request.limit_bytes if request.HasField("limit_bytes") else None
        return usage_message(await self._parts.quotas.set_limit(request.tenant, limit))

    async def ListQuotas(  # noqa: N802
        self, request: pb.ListQuotasRequest, context: Context
    ) -> pb.ListQuotasResponse:
        """What tenants use."""
        return pb.ListQuotasResponse(tenants=map(usage_message, await self._parts.quotas.usage()))

    async def _rebuilt(self, on_progress: OnProgress) -> pb.RebuildIndexReport:
        began_s = time.monotonic()
        rebuilt, only_in_index = await self._parts.index.repair(lambda done: on_progress(Progress("index", done)))
        return rebuild_message(rebuilt, only_in_index, took_s=time.monotonic() - began_s)
