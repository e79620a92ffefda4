# SPDX-License-Identifier: Apache-2.0
"""A compiler service from memory: a real gRPC server on a free port that hands out artifacts, with faults on demand.

It implements dovetail.v1.ArtifactCache, Fleet and what a node needs of ModelRegistry. It judges nothing: the ladder of
each model is what the test says, so that a test can offer what must be refused on the device.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence

import grpc
import grpc.aio
import zstandard

from dovetail.artifact import Manifest
from dovetail.benchmark import BenchmarkRecord
from dovetail.digest import sha256_hex
from dovetail.pb.v1 import artifacts_pb2, fleet_pb2, registry_pb2, types_pb2
from dovetail.pb.v1.artifacts_pb2_grpc import ArtifactCacheServicer, add_ArtifactCacheServicer_to_server
from dovetail.pb.v1.fleet_pb2_grpc import FleetServicer, add_FleetServicer_to_server
from dovetail.pb.v1.registry_pb2_grpc import ModelRegistryServicer, add_ModelRegistryServicer_to_server
from dovetail.wire import read_benchmark
from tests.fakes.signing import signed


class FakeArtifactCache(ArtifactCacheServicer, FleetServicer, ModelRegistryServicer):
    """The service; attributes are knobs and counters, read and set from the test at any time.

    Attributes:
        address: Where it listens, after `start`; the same after a restart.
        compress: Send chunks as zstd.
        flip: Chunk digest -> how many of the next copies arrive with one bit flipped.
        lost: Chunks that no tier has any more.
        drop_after: The next streams break with UNAVAILABLE after so many chunks each; used from the front.
        hold_after: Every stream stops sending after so many chunks and waits; None: never.
        sent: Chunk digest -> how often it was sent.
        requests: Digests of each FetchChunks call.
        nodes: Every report of a node, in order.
        negotiations: Every request to negotiate or watch, in order.
        lists: How often the models were listed.
        reported: Artifact key and figures of the benchmarks that were reported, in order.
        measured: Artifacts of which offers say that they were measured on the asking machine's class.
        mute: Refuse benchmarks as if the index were away.
        envelopes: Artifact key -> envelope that comes with its manifest; what is missing here is sent unsigned.
    """

    def __init__(self) -> None:
        self.address = ""
        self.compress = False
        self.flip: dict[str, int] = {}
        self.lost: set[str] = set()
        self.drop_after: list[int] = []
        self.hold_after: int | None = None
        self.sent: Counter[str] = Counter()
        self.requests: list[list[str]] = []
        self.nodes: list[fleet_pb2.Node] = []
        self.negotiations: list[artifacts_pb2.NegotiateRequest] = []
        self.reported: list[tuple[str, BenchmarkRecord]] = []
        self.measured: set[str] = set()
        self.mute = False
        self.lists = 0
        self.holding = asyncio.Event()
        self._chunks: dict[str, bytes] = {}
        self.envelopes: dict[str, bytes] = {}
        self._manifests: dict[str, bytes] = {}
        self._offers: dict[str, artifacts_pb2.Offer] = {}
        self._changed = asyncio.Condition()
        self._server: grpc.aio.Server | None = None

    async def __aenter__(self) -> FakeArtifactCache:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, interceptors: Sequence[grpc.aio.ServerInterceptor] = ()) -> None:
        """Listen; on the same port as before after a `stop`."""
        self._server = grpc.aio.server(interceptors=interceptors, options=[("grpc.so_reuseport", 0)])
        add_ArtifactCacheServicer_to_server(self, self._server)
        add_FleetServicer_to_server(self, self._server)
        add_ModelRegistryServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(self.address or "127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def stop(self) -> None:
        """Die: running streams break, new calls find nobody."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    def publish(self, manifest: Manifest, files: dict[str, bytes]) -> str:
        """Store an artifact; returns its key."""
        for entry in manifest.files:
            position = 0
            for chunk in entry.chunks:
                self._chunks[chunk.digest] = files[entry.name][position : position + chunk.size_bytes]
                position += chunk.size_bytes
        self.replace_manifest(manifest.artifact_key, manifest.to_bytes())
        return manifest.artifact_key

    def forget_manifest(self, key: str) -> None:
        """The artifact is gone."""
        del self._manifests[key]

    def replace_manifest(self, key: str, data: bytes) -> None:
        """Serve other bytes as that artifact's manifest, signed by the worker all the same."""
        self._manifests[key] = data
        self.envelopes[key] = signed(data)

    async def offer(self, model: str, *keys: str, version: int = 1) -> None:
        """Offer a ladder, best first, and tell all who watch."""
        manifest = sha256_hex(self._manifests[keys[0]]) if keys else ""
        async with self._changed:
            self._offers[model] = artifacts_pb2.Offer(
                model=model,
                version=version,
                hardware_class="fake",
                choice=keys[0] if keys else "",
                manifest_digest=manifest,
                basis="prior",
                assessments=[
                    artifacts_pb2.Assessment(
                        artifact_key=key, verdict=types_pb2.VERDICT_OPTIMAL, rank=rank, measured=key in self.measured
                    )
                    for rank, key in enumerate(keys, 1)
                ],
            )
            self._changed.notify_all()

    def forget(self, model: str) -> None:
        """Know no offer for that model any more, as after its deletion."""
        del self._offers[model]

    async def wait_for_node(self, predicate: object) -> fleet_pb2.Node:
        """The first report, past or future, that fits."""
        assert callable(predicate)
        async with self._changed:
            await self._changed.wait_for(lambda: any(predicate(node) for node in self.nodes))
        return next(node for node in self.nodes if predicate(node))

    async def wait_for_benchmarks(self, count: int) -> None:
        """Wait until so many benchmarks were reported in all."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.reported) >= count)

    async def wait_for_lists(self, more: int) -> None:
        """Wait until the models were listed so many more times."""
        wanted = self.lists + more
        async with self._changed:
            await self._changed.wait_for(lambda: self.lists >= wanted)

    async def Negotiate(self, request, context):  # type: ignore[no-untyped-def]
        self.negotiations.append(request)
        if request.model not in self._offers:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.model}")
        return self._offers[request.model]

    async def WatchOffers(self, request, context) -> AsyncIterator[artifacts_pb2.Offer]:  # type: ignore[no-untyped-def]
        self.negotiations.append(request)
        if request.model not in self._offers:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.model}")
        told: list[artifacts_pb2.Offer] = []
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: [self._offers[request.model]] != told)
                told[:] = [self._offers[request.model]]
            yield told[0]

    async def GetManifest(self, request, context):  # type: ignore[no-untyped-def]
        data = self._manifests.get(request.artifact_key)
        if data is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no artifact {request.artifact_key}")
        envelope = self.envelopes.get(request.artifact_key, b"")
        return artifacts_pb2.ManifestReply(manifest_json=data, digest=sha256_hex(data), envelope_json=envelope)

    async def FetchChunks(self, request, context) -> AsyncIterator[artifacts_pb2.Chunk]:  # type: ignore[no-untyped-def]
        self.requests.append(list(request.digests))
        drop_after = self.drop_after.pop(0) if self.drop_after else None
        for count, digest in enumerate(request.digests):
            if count == drop_after:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "dropped on purpose")
            if self.hold_after is not None and count >= self.hold_after:
                self.holding.set()
                await asyncio.Event().wait()
            if digest in self.lost or digest not in self._chunks:
                await context.abort(grpc.StatusCode.NOT_FOUND, f"no chunk {digest}")
            self.sent[digest] += 1
            yield self._chunk(digest)

    def _chunk(self, digest: str) -> artifacts_pb2.Chunk:
        data = self._chunks[digest]
        size_bytes = len(data)
        if self.flip.get(digest, 0) > 0:
            self.flip[digest] -= 1
            data = bytes((data[0] ^ 1,)) + data[1:]
        codec = artifacts_pb2.CHUNK_CODEC_PLAIN
        if self.compress:
            data, codec = zstandard.ZstdCompressor().compress(data), artifacts_pb2.CHUNK_CODEC_ZSTD
        return artifacts_pb2.Chunk(digest=digest, codec=codec, data=data, size_bytes=size_bytes)

    async def ReportBenchmark(self, request, context):  # type: ignore[no-untyped-def]
        if self.mute:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the index is away on purpose")
        async with self._changed:
            self.reported.append((request.artifact_key, read_benchmark(request.benchmark_json)))
            self._changed.notify_all()
        return artifacts_pb2.ReportBenchmarkResponse()

    async def ReportNode(self, request, context):  # type: ignore[no-untyped-def]
        async with self._changed:
            self.nodes.append(request)
            self._changed.notify_all()
        return fleet_pb2.ReportNodeResponse(next_report_s=0.2)

    async def ListModels(self, request, context):  # type: ignore[no-untyped-def]
        async with self._changed:
            self.lists += 1
            self._changed.notify_all()
        return registry_pb2.ListModelsResponse(
            models=[registry_pb2.Model(name=name, version=offer.version) for name, offer in self._offers.items()]
        )
