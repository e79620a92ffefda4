# SPDX-License-Identifier: Apache-2.0
"""`inference.GRPCInferenceService`: the RPCs about models and their inferences, over a repository.

Errors are raised as ours; the server's interceptor makes statuses of them. Inside a stream they become replies
instead, so that one bad request does not end the stream for the others. The other RPCs of the service are in
`memory_servicer` and `settings_servicer`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import grpc.aio

from dovetail.clock import Clock, SystemClock
from dovetail.digest import check_name
from dovetail.errors import DovetailError, ErrorCode, NotFoundError, UnavailableError, UnsupportedError
from dovetail.pb import oip
from dovetail.rpc.status import public_text
from runtime_svc.batcher import InferenceRequest
from runtime_svc.protocol.metadata import model_metadata, repository_index, server_metadata
from runtime_svc.protocol.model_config import model_config
from runtime_svc.protocol.parameters import check_unload_parameters, read_load_version
from runtime_svc.protocol.region_parameters import bytes_in_regions
from runtime_svc.protocol.request_decoding import decode_request
from runtime_svc.protocol.requested_outputs import bytes_to_regions, read_requested_outputs
from runtime_svc.protocol.response_encoding import encode_response, encode_stream_error, encode_stream_response
from runtime_svc.protocol.statistics_reply import model_statistics
from runtime_svc.protocol.stream import replies_in_order
from runtime_svc.repository import ModelControl, Repository
from runtime_svc.served_model import ServedModel
from runtime_svc.shared_memory import SharedMemoryRegions
from runtime_svc.trace import QUEUE_START, RESPONSE_COMPLETE, RequestTrace, Tracer

_T = TypeVar("_T")
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_STATUS_HEADER = ("triton_grpc_error", "true")  # a client that sends it wants a stream's first error as its status


INLINE_BYTES = 4 << 20
"""Most bytes of shared memory that are copied on the event loop: about a millisecond."""


class UnknownModelError(DovetailError):
    """A load names a model that nobody has; INTERNAL with its text, as in Triton."""

    code = ErrorCode.ENGINE


class InferenceServicer:
    """Serves a repository.

    Args:
        repository: The models.
        extensions: Of the protocol, that work here; clients switch on them.
        regions: Where tensors outside of messages may lie.
        tracer: Traces requests.
        control: Loads and unloads models for callers; None refuses both.
        clock: Judges deadlines; the repository's models must use the same.
    """

    def __init__(
        self,
        repository: Repository,
        *,
        extensions: Sequence[str],
        regions: SharedMemoryRegions,
        tracer: Tracer,
        control: ModelControl | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._repository = repository
        self._extensions = tuple(extensions)
        self._regions = regions
        self._tracer = tracer
        self._control = control
        self._clock = clock or SystemClock()

    async def ServerLive(self, request: oip.ServerLiveRequest, context: Context) -> oip.ServerLiveResponse:  # noqa: N802
        """True: it answers."""
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: oip.ServerReadyRequest, context: Context) -> oip.ServerReadyResponse:  # noqa: N802
        """True while every wanted model serves."""
        return oip.ServerReadyResponse(ready=self._repository.ready())

    async def ModelReady(self, request: oip.ModelReadyRequest, context: Context) -> oip.ModelReadyResponse:  # noqa: N802
        """True while that model serves; an unknown one is simply not ready."""
        return oip.ModelReadyResponse(ready=self._repository.serves(request.name, request.version))

    async def ServerMetadata(  # noqa: N802
        self, request: oip.ServerMetadataRequest, context: Context
    ) -> oip.ServerMetadataResponse:
        """Name, version and extensions."""
        return server_metadata(self._extensions)

    async def ModelMetadata(  # noqa: N802
        self, request: oip.ModelMetadataRequest, context: Context
    ) -> oip.ModelMetadataResponse:
        """Signature and versions of a model."""
        facts = self._repository.resolve(request.name, request.version).facts
        versions = [model.facts.version for model in self._repository.serving() if model.facts.name == request.name]
        return model_metadata(facts, [facts.version] if request.version else versions)

    async def ModelConfig(self, request: oip.ModelConfigRequest, context: Context) -> oip.ModelConfigResponse:  # noqa: N802
        """Setup of a model."""
        return oip.ModelConfigResponse(config=model_config(self._repository.resolve(request.name, request.version)))

    async def ModelStatistics(  # noqa: N802
        self, request: oip.ModelStatisticsRequest, context: Context
    ) -> oip.ModelStatisticsResponse:
        """Figures of one version, of all versions of a model, or of everything."""
        models = self._selected(request.name, request.version)
        return oip.ModelStatisticsResponse(model_stats=[model_statistics(model) for model in models])

    async def ModelInfer(self, request: oip.ModelInferRequest, context: Context) -> oip.ModelInferResponse:  # noqa: N802
        """One inference."""
        return await self._infer(request, context.time_remaining())

    async def ModelStreamInfer(  # noqa: N802
        self, requests: AsyncIterator[oip.ModelInferRequest], context: Context
    ) -> AsyncIterator[oip.ModelStreamInferResponse]:
        """Many inferences; a reply for each, in order."""
        as_status = _STATUS_HEADER in [(str(key), value) for key, value in context.invocation_metadata() or ()]

        async def answer(request: oip.ModelInferRequest) -> oip.ModelStreamInferResponse:
            try:
                return encode_stream_response(await self._infer(request, context.time_remaining()))
            except DovetailError as error:
                if as_status:
                    raise
                return encode_stream_error(request.id, public_text(str(error)))

        async for reply in replies_in_order(aiter(requests), answer):
            yield reply

    async def RepositoryIndex(  # noqa: N802
        self, request: oip.RepositoryIndexRequest, context: Context
    ) -> oip.RepositoryIndexResponse:
        """All versions and their states."""
        _check_repository_name(request.repository_name)
        return repository_index(self._repository.index(), ready_only=request.ready)

    async def RepositoryModelLoad(  # noqa: N802
        self, request: oip.RepositoryModelLoadRequest, context: Context
    ) -> oip.RepositoryModelLoadResponse:
        """Take a model into service."""
        _check_repository_name(request.repository_name)
        version = read_load_version(request.parameters)
        name = check_name(request.model_name, "model name")
        try:
            await self._controlled().load(name, version)
        except NotFoundError as error:
            raise UnknownModelError(
                f"failed to load '{name}', failed to poll from model repository: {error}"
            ) from error
        return oip.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(  # noqa: N802
        self, request: oip.RepositoryModelUnloadRequest, context: Context
    ) -> oip.RepositoryModelUnloadResponse:
        """Take a model out of service."""
        _check_repository_name(request.repository_name)
        check_unload_parameters(request.parameters)
        await self._controlled().unload(check_name(request.model_name, "model name"))
        return oip.RepositoryModelUnloadResponse()

    async def _infer(self, request: oip.ModelInferRequest, remaining_s: float | None) -> oip.ModelInferResponse:
        trace = self._tracer.begin(request.model_name)
        with self._repository.lease(request.model_name, request.model_version) as model:
            response = await self._infer_with(model, request, remaining_s, trace)
            if trace is not None:
                facts = model.facts
                self._tracer.finish(trace, model=facts.name, version=facts.version, request_id=request.id)
            return response

    async def _infer_with(
        self, model: ServedModel, request: oip.ModelInferRequest, remaining_s: float | None, trace: RequestTrace | None
    ) -> oip.ModelInferResponse:
        forms = read_requested_outputs(request.outputs, model.facts, self._regions)
        now_s = self._clock.monotonic_s()

        def decode() -> InferenceRequest:
            return decode_request(request, model.facts, self._regions, now_s=now_s, remaining_s=remaining_s)

        work = await _off_loop_if_large(bytes_in_regions(request.inputs), decode)
        if trace is not None:
            trace.mark(QUEUE_START)
        outputs = await model.infer(work)
        if trace is not None:
            trace.mark(RESPONSE_COMPLETE)
        return await _off_loop_if_large(
            bytes_to_regions(forms), lambda: encode_response(request, model.facts, outputs, forms)
        )

    def _selected(self, name: str, version: str) -> list[ServedModel]:
        if version:
            return [self._repository.resolve(name, version)]
        if name:
            self._repository.resolve(name)
        return [model for model in self._repository.serving() if name in ("", model.facts.name)]

    def _controlled(self) -> ModelControl:
        if self._control is None:
            raise UnavailableError("explicit model load / unload is not allowed: this server's models are fixed")
        return self._control


async def _off_loop_if_large(size_bytes: int, work: Callable[[], _T]) -> _T:
    return work() if size_bytes <= INLINE_BYTES else await asyncio.to_thread(work)


def _check_repository_name(name: str) -> None:
    if name:
        raise UnsupportedError("'repository_name' specification is not supported")
