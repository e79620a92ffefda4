# SPDX-License-Identifier: Apache-2.0
"""`inference.GRPCInferenceService`: the RPCs about the server and its models, over a repository.

Errors are raised as ours; the server's interceptor makes statuses of them. The RPCs that infer are `grpc_aio`'s, the
others of the service are in `memory_servicer` and `settings_servicer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import grpc.aio

from dovetail.digest import check_name
from dovetail.errors import DovetailError, ErrorCode, NotFoundError, UnavailableError, UnsupportedError
from dovetail.pb import oip
from runtime_svc.model_control import ModelControl
from runtime_svc.protocol.metadata import model_metadata, repository_index, server_metadata
from runtime_svc.protocol.model_config import model_config
from runtime_svc.protocol.parameters import read_load_parameters, read_unload_dependents
from runtime_svc.protocol.statistics_reply import model_statistics
from runtime_svc.repository import Repository
from runtime_svc.served_model import ServedModel

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class UnknownModelError(DovetailError):
    """A load names a model that nobody has; INTERNAL with its text, as in Triton."""

    code = ErrorCode.ENGINE


class ModelServicer:
    """Serves a repository.

    Args:
        repository: The models.
        extensions: Of the protocol, that work here; clients switch on them.
        control: Loads and unloads models for callers; None refuses both.
    """

    def __init__(
        self,
        repository: Repository,
        *,
        extensions: Sequence[str],
        control: ModelControl | None = None,
    ) -> None:
        self._repository = repository
        self._extensions = tuple(extensions)
        self._control = control

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
        version, override = read_load_parameters(request.parameters)
        name = check_name(request.model_name, "model name")
        try:
            await self._controlled().load(name, version, override)
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
        dependents = read_unload_dependents(request.parameters)
        await self._controlled().unload(check_name(request.model_name, "model name"), dependents=dependents)
        return oip.RepositoryModelUnloadResponse()

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


def _check_repository_name(name: str) -> None:
    if name:
        raise UnsupportedError("'repository_name' specification is not supported")
