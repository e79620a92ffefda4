# SPDX-License-Identifier: Apache-2.0
"""`dovetail.v1.ArtifactCache`: message in, message out; the work is `compiler_svc.offers`' and `.distribution`'s."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc.aio

from compiler_svc.distribution import Distribution
from compiler_svc.offers import OfferDesk
from dovetail.pb.v1 import artifacts_pb2 as pb
from dovetail.pb.v1.artifacts_pb2_grpc import ArtifactCacheServicer, add_ArtifactCacheServicer_to_server
from dovetail.rpc.chunk_frames import fetch_handlers
from dovetail.rpc.interceptor import Context
from dovetail.rpc.lifecycle import until

SERVICE = "dovetail.v1.ArtifactCache"


def add_artifacts(servicer: ArtifactsServicer, distribution: Distribution, server: grpc.aio.Server) -> None:
    """Serve all of the service; the first handler that knows a method takes it, so FetchChunks comes first."""
    server.add_generic_rpc_handlers((fetch_handlers(distribution.chunks.send),))
    add_ArtifactCacheServicer_to_server(servicer, server)


class ArtifactsServicer(ArtifactCacheServicer):
    """See protos/dovetail/v1/artifacts.proto; FetchChunks is not here but in `fetch_handlers`."""

    def __init__(self, offers: OfferDesk, distribution: Distribution, *, stopping: asyncio.Event) -> None:
        self._offers = offers
        self._distribution = distribution
        self._stopping = stopping

    async def Negotiate(self, request: pb.NegotiateRequest, context: Context) -> pb.Offer:  # noqa: N802
        """The artifact that fits best, and why not the others."""
        return await self._offers.negotiate(request)

    async def WatchOffers(  # noqa: N802 - the protocol's names
        self, request: pb.NegotiateRequest, context: Context
    ) -> AsyncIterator[pb.Offer]:
        """The offer, and again whenever the choice or the set of artifacts offered changes."""
        why = "this server is stopping; watch another, or again in a moment"
        async for offer in until(self._stopping, self._offers.watch(request), why=why):
            yield offer

    async def GetManifest(self, request: pb.GetManifestRequest, context: Context) -> pb.ManifestReply:  # noqa: N802
        """A manifest as stored."""
        return await self._distribution.manifest(request.artifact_key, request.known_digest)

    async def ReportBenchmark(  # noqa: N802
        self, request: pb.ReportBenchmarkRequest, context: Context
    ) -> pb.ReportBenchmarkResponse:
        """Figures measured by a node."""
        await self._distribution.report_benchmark(request.artifact_key, request.benchmark_json)
        return pb.ReportBenchmarkResponse()

    async def ListArtifacts(  # noqa: N802
        self, request: pb.ListArtifactsRequest, context: Context
    ) -> pb.ListArtifactsResponse:
        """Manifests of all artifacts, or those of one model."""
        return pb.ListArtifactsResponse(artifacts=await self._distribution.manifests(request.model, request.version))
