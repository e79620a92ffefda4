# SPDX-License-Identifier: Apache-2.0
"""A mesh from memory for tests of the SDK and the command line: a real gRPC server with all services on one port.

What it answers is what the test put into its attributes; what it was asked is kept. The inference part doubles every
float input, so that an answer can be told from another.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import grpc.aio
import numpy as np

from dovetail.errors import InvalidInputError, NotFoundError
from dovetail.pb import oip, oip_pb2
from dovetail.pb.v1 import artifacts_pb2, compiler_pb2, fleet_pb2, registry_pb2
from dovetail.pb.v1.artifacts_pb2_grpc import ArtifactCacheServicer, add_ArtifactCacheServicer_to_server
from dovetail.pb.v1.compiler_pb2_grpc import CompilerServicer, add_CompilerServicer_to_server
from dovetail.pb.v1.fleet_pb2_grpc import FleetServicer, add_FleetServicer_to_server
from dovetail.pb.v1.registry_pb2_grpc import ModelRegistryServicer, add_ModelRegistryServicer_to_server
from dovetail.rpc.server import RpcServer
from dovetail.tensor import from_raw, to_raw


class FakeMesh(ModelRegistryServicer, CompilerServicer, ArtifactCacheServicer, FleetServicer):
    """The services; attributes are read and set by the test.

    Attributes:
        address: Where it listens, inside `serving`.
        models: Registered versions.
        pushed: Header and bytes of each push.
        events: What Compile sends.
        hang: Compile waits after its events instead of ending.
        left: Set when a Compile call ended, also when the client went away.
        compile_requests: Every order.
        rebuilds: Keys that were to be rebuilt.
        stale: What ListStale answers.
        queue: What ListJobs answers.
        dead: What ListJobs answers if it is asked for dead jobs.
        retried: Every RetryJobs; answered with what `events` tell last of each build.
        cancelled: Keys that were to be cancelled.
        workers: What ListWorkers answers.
        watches: Every WatchBuilds; answered with `events`.
        offer: What Negotiate answers; None: NOT_FOUND.
        negotiations: Every question.
        manifests: Artifact key -> bytes.
        figures: Artifact key -> benchmark records that nodes reported.
        chunks: Digest -> bytes.
        nodes: What ListNodes answers.
        reverse_stream: Answer a stream's requests in reverse order, in pairs.
    """

    def __init__(self) -> None:
        self.address = ""
        self.models: list[registry_pb2.Model] = []
        self.pushed: list[tuple[registry_pb2.PushHeader, bytes]] = []
        self.events: list[compiler_pb2.BuildEvent] = []
        self.hang = False
        self.left = asyncio.Event()
        self.compile_requests: list[compiler_pb2.CompileRequest] = []
        self.rebuilds: list[str] = []
        self.stale: list[compiler_pb2.StaleArtifact] = []
        self.queue = compiler_pb2.ListJobsResponse()
        self.dead = compiler_pb2.ListJobsResponse()
        self.retried: list[compiler_pb2.RetryJobsRequest] = []
        self.cancelled: list[str] = []
        self.workers: list[compiler_pb2.Worker] = []
        self.watches: list[compiler_pb2.WatchBuildsRequest] = []
        self.offer: artifacts_pb2.Offer | None = None
        self.negotiations: list[artifacts_pb2.NegotiateRequest] = []
        self.manifests: dict[str, bytes] = {}
        self.figures: dict[str, list[bytes]] = {}
        self.chunks: dict[str, bytes] = {}
        self.nodes: list[fleet_pb2.Node] = []
        self.reverse_stream = False

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[FakeMesh]:
        """Serve on a free port."""
        rpc = RpcServer()
        add_ModelRegistryServicer_to_server(self, rpc.server)
        add_CompilerServicer_to_server(self, rpc.server)
        add_ArtifactCacheServicer_to_server(self, rpc.server)
        add_FleetServicer_to_server(self, rpc.server)
        rpc.server.add_generic_rpc_handlers((oip.generic_handler(_Inference(self)),))
        self.address = f"127.0.0.1:{await rpc.start('127.0.0.1:0')}"
        try:
            yield self
        finally:
            await rpc.stop(0.1)

    async def PushModel(
        self, request_iterator: AsyncIterator[registry_pb2.PushModelRequest], context: grpc.aio.ServicerContext
    ) -> registry_pb2.PushModelResponse:
        header, data = registry_pb2.PushHeader(), b""
        async for message in request_iterator:
            if message.HasField("header"):
                header = message.header
            data += message.data
        self.pushed.append((header, data))
        model = registry_pb2.Model(name=header.name, version=len(self.models) + 1)
        self.models.append(model)
        return registry_pb2.PushModelResponse(model=model, created=True, notes=["opset 28 -> 21"])

    async def ListModels(
        self, request: registry_pb2.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> registry_pb2.ListModelsResponse:
        found = [model for model in self.models if request.name in ("", model.name)]
        return registry_pb2.ListModelsResponse(models=found)

    async def GetModel(
        self, request: registry_pb2.GetModelRequest, context: grpc.aio.ServicerContext
    ) -> registry_pb2.Model:
        for model in reversed(self.models):
            if model.name == request.name and request.version in (0, model.version):
                return model
        raise NotFoundError(f"no model {request.name!r}")

    async def Compile(
        self, request: compiler_pb2.CompileRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[compiler_pb2.BuildEvent]:
        self.compile_requests.append(request)
        try:
            for event in self.events:
                yield event
            if self.hang:
                await asyncio.Event().wait()
        finally:
            self.left.set()

    async def Rebuild(
        self, request: compiler_pb2.RebuildRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[compiler_pb2.BuildEvent]:
        self.rebuilds.append(request.artifact_key)
        for event in self.events:
            yield event

    async def WatchBuilds(
        self, request: compiler_pb2.WatchBuildsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[compiler_pb2.BuildEvent]:
        self.watches.append(request)
        for event in self.events:
            yield event

    async def ListJobs(
        self, request: compiler_pb2.ListJobsRequest, context: grpc.aio.ServicerContext
    ) -> compiler_pb2.ListJobsResponse:
        return self.dead if request.dead else self.queue

    async def RetryJobs(
        self, request: compiler_pb2.RetryJobsRequest, context: grpc.aio.ServicerContext
    ) -> compiler_pb2.RetryJobsResponse:
        self.retried.append(request)
        last = {event.build.artifact_key: event.build for event in self.events}
        return compiler_pb2.RetryJobsResponse(builds=last.values())

    async def CancelBuild(
        self, request: compiler_pb2.CancelBuildRequest, context: grpc.aio.ServicerContext
    ) -> compiler_pb2.Build:
        self.cancelled.append(request.artifact_key)
        build = compiler_pb2.Build()
        build.CopyFrom(await self.GetBuild(compiler_pb2.GetBuildRequest(artifact_key=request.artifact_key), context))
        build.phase = compiler_pb2.BUILD_PHASE_CANCELLED
        return build

    async def ListWorkers(
        self, request: compiler_pb2.ListWorkersRequest, context: grpc.aio.ServicerContext
    ) -> compiler_pb2.ListWorkersResponse:
        return compiler_pb2.ListWorkersResponse(workers=self.workers)

    async def ListStale(
        self, request: compiler_pb2.ListStaleRequest, context: grpc.aio.ServicerContext
    ) -> compiler_pb2.ListStaleResponse:
        return compiler_pb2.ListStaleResponse(artifacts=self.stale)

    async def ListBuilds(
        self, request: compiler_pb2.ListBuildsRequest, context: grpc.aio.ServicerContext
    ) -> compiler_pb2.ListBuildsResponse:
        last = {event.build.artifact_key: event.build for event in self.events}
        return compiler_pb2.ListBuildsResponse(builds=last.values())

    async def GetBuild(
        self, request: compiler_pb2.GetBuildRequest, context: grpc.aio.ServicerContext
    ) -> compiler_pb2.Build:
        for event in reversed(self.events):
            if event.build.artifact_key == request.artifact_key:
                return event.build
        raise NotFoundError("no such build")

    async def Negotiate(
        self, request: artifacts_pb2.NegotiateRequest, context: grpc.aio.ServicerContext
    ) -> artifacts_pb2.Offer:
        self.negotiations.append(request)
        if self.offer is None:
            raise NotFoundError(f"no model {request.model!r}")
        return self.offer

    async def GetManifest(
        self, request: artifacts_pb2.GetManifestRequest, context: grpc.aio.ServicerContext
    ) -> artifacts_pb2.ManifestReply:
        if request.artifact_key not in self.manifests:
            raise NotFoundError("no such artifact")
        return artifacts_pb2.ManifestReply(manifest_json=self.manifests[request.artifact_key])

    async def ListArtifacts(
        self, request: artifacts_pb2.ListArtifactsRequest, context: grpc.aio.ServicerContext
    ) -> artifacts_pb2.ListArtifactsResponse:
        replies = [
            artifacts_pb2.ManifestReply(manifest_json=data, benchmarks_json=self.figures.get(key, []))
            for key, data in self.manifests.items()
        ]
        return artifacts_pb2.ListArtifactsResponse(artifacts=replies)

    async def FetchChunks(
        self, request: artifacts_pb2.FetchChunksRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[artifacts_pb2.Chunk]:
        for digest in request.digests:
            yield artifacts_pb2.Chunk(digest=digest, data=self.chunks[digest], size_bytes=len(self.chunks[digest]))

    async def ListNodes(
        self, request: fleet_pb2.ListNodesRequest, context: grpc.aio.ServicerContext
    ) -> fleet_pb2.ListNodesResponse:
        return fleet_pb2.ListNodesResponse(nodes=self.nodes)


@contextmanager
def mesh_in_thread() -> Iterator[FakeMesh]:
    """A mesh that serves from a thread of its own, for callers without an event loop."""
    mesh, ready, done = FakeMesh(), threading.Event(), threading.Event()

    async def serve() -> None:
        async with mesh.serving():
            ready.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        if not ready.wait(20):
            raise TimeoutError("the fake mesh did not start")
        yield mesh
    finally:
        done.set()
        thread.join()


class _Inference:
    def __init__(self, mesh: FakeMesh) -> None:
        self._mesh = mesh

    async def ModelMetadata(
        self, request: oip_pb2.ModelMetadataRequest, context: grpc.aio.ServicerContext
    ) -> oip_pb2.ModelMetadataResponse:
        reply = oip_pb2.ModelMetadataResponse(name=request.name)
        reply.inputs.add(name="image", datatype="FP32", shape=[-1, 2])
        return reply

    async def ModelInfer(
        self, request: oip_pb2.ModelInferRequest, context: grpc.aio.ServicerContext
    ) -> oip_pb2.ModelInferResponse:
        return doubled(request)

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[oip_pb2.ModelInferRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[oip_pb2.ModelStreamInferResponse]:
        held: list[oip_pb2.ModelInferResponse] = []
        async for request in request_iterator:
            try:
                held.append(doubled(request))
            except InvalidInputError as exc:
                failed = oip_pb2.ModelInferResponse(id=request.id)
                yield oip_pb2.ModelStreamInferResponse(error_message=str(exc), infer_response=failed)
            if self._mesh.reverse_stream and len(held) < 2:
                continue
            while held:
                yield oip_pb2.ModelStreamInferResponse(infer_response=held.pop())
        while held:
            yield oip_pb2.ModelStreamInferResponse(infer_response=held.pop())


def doubled(request: oip_pb2.ModelInferRequest) -> oip_pb2.ModelInferResponse:
    """The answer: every input times two under the same name; only those asked for, if any were."""
    reply = oip_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
    wanted = {output.name for output in request.outputs}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        if tensor.datatype not in ("FP32", "BYTES"):
            raise InvalidInputError(f"input {tensor.name} must be FP32")
        array = from_raw(raw, tensor.datatype, tensor.shape, name=tensor.name)
        result = array * np.float32(2) if tensor.datatype == "FP32" else array
        if not wanted or tensor.name in wanted:
            reply.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            reply.raw_output_contents.append(to_raw(result, tensor.datatype))
    return reply
