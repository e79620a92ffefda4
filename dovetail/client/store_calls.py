# SPDX-License-Identifier: Apache-2.0
"""The SDK's verbs about what is stored: figures, verifying, collecting, filling the index again, quotas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dovetail.client.build_calls import CALL_TIMEOUT_S
from dovetail.client.store_messages import (
    read_collect,
    read_progress,
    read_rebuild,
    read_stats,
    read_usage,
    read_verify,
)
from dovetail.client.store_results import (
    CollectReport,
    RebuildIndexReport,
    StoreProgress,
    StoreStats,
    TenantUsage,
    VerifyReport,
)
from dovetail.errors import UnavailableError
from dovetail.pb.v1 import store_pb2 as pb
from dovetail.pb.v1.store_pb2_grpc import StoreStub
from dovetail.rpc.status import translated_errors

OnStoreProgress = Callable[[StoreProgress], None]
"""Called about twice a second while long work goes on; from the event loop's thread."""


class StoreCalls:
    """Verbs about the store; a part of `AsyncClient`, which fills in the attributes.

    Attributes:
        address: host:port of the compiler service.
    """

    address: str
    _store: StoreStub

    async def store_stats(self, on_progress: OnStoreProgress | None = None) -> StoreStats:
        """What is stored, by tier, kind, model and tenant."""
        call = self._store.GetStats(pb.GetStatsRequest())
        return read_stats((await self._followed(call, on_progress)).stats)

    async def verify_store(
        self,
        *,
        sample: float = 1.0,
        after: str = "",
        bytes_per_s: float = 0.0,
        on_progress: OnStoreProgress | None = None,
    ) -> VerifyReport:
        """Read and hash what is stored, put right what can be, and tell what is lost.

        Args:
            sample: Part of the chunks that is read.
            after: Go on after this digest, as `StoreProgress.position` of an earlier run says.
            bytes_per_s: Read no faster; 0: the service's own limit.
            on_progress: Told how far it is.

        Raises:
            InvalidInputError: A sample, position or rate that is not possible.
        """
        request = pb.VerifyRequest(sample=sample, after=after, bytes_per_s=bytes_per_s)
        return read_verify((await self._followed(self._store.Verify(request), on_progress)).report)

    async def collect_store(
        self, *, dry_run: bool = False, on_progress: OnStoreProgress | None = None
    ) -> CollectReport:
        """Take away what nobody needs; with a dry run only say what would go.

        Raises:
            PreconditionError: Another collection runs, the index is too young, or a document cannot be read.
        """
        call = self._store.Collect(pb.CollectRequest(dry_run=dry_run))
        return read_collect((await self._followed(call, on_progress)).report)

    async def rebuild_index(self, on_progress: OnStoreProgress | None = None) -> RebuildIndexReport:
        """Read the durable tier into the index again; nothing that is there is changed."""
        call = self._store.RebuildIndex(pb.RebuildIndexRequest())
        return read_rebuild((await self._followed(call, on_progress)).report)

    async def quotas(self) -> tuple[TenantUsage, ...]:
        """Tenants that store something or have a limit of their own."""
        with translated_errors(self.address):
            reply = await self._store.ListQuotas(pb.ListQuotasRequest(), timeout=CALL_TIMEOUT_S)
        return tuple(read_usage(item) for item in reply.tenants)

    async def set_quota(self, tenant: str, limit_bytes: int | None) -> TenantUsage:
        """Give a tenant a limit of its own (0: none), or the default again (None).

        Raises:
            InvalidInputError: A tenant or limit that is not possible.
        """
        request = pb.SetQuotaRequest(tenant=tenant)
        if limit_bytes is not None:
            request.limit_bytes = limit_bytes
        with translated_errors(self.address):
            return read_usage(await self._store.SetQuota(request, timeout=CALL_TIMEOUT_S))

    async def _followed(self, call: Any, on_progress: OnStoreProgress | None) -> Any:
        """The last event of a stream."""
        try:
            with translated_errors(self.address):
                async for event in call:
                    if event.WhichOneof("step") != "progress":
                        return event
                    if on_progress is not None:
                        on_progress(read_progress(event.progress))
        finally:
            call.cancel()
        raise UnavailableError(f"{self.address} ended the stream without a result; ask again")
