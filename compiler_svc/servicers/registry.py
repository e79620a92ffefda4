# SPDX-License-Identifier: Apache-2.0
"""`dovetail.v1.ModelRegistry`: message in, message out; the work is `compiler_svc.registry`'s."""

from __future__ import annotations

from collections.abc import AsyncIterator

from compiler_svc.registry import ModelRegistry
from dovetail.pb.v1 import registry_pb2 as pb
from dovetail.pb.v1.registry_pb2_grpc import ModelRegistryServicer
from dovetail.rpc.interceptor import Context

SERVICE = "dovetail.v1.ModelRegistry"


class RegistryServicer(ModelRegistryServicer):
    """See protos/dovetail/v1/registry.proto."""

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry

    async def PushModel(  # noqa: N802 - the protocol's names
        self, request_iterator: AsyncIterator[pb.PushModelRequest], context: Context
    ) -> pb.PushModelResponse:
        """Register a model with its samples."""
        return await self._registry.push(request_iterator)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.Model:  # noqa: N802
        """One version."""
        return await self._registry.get(request)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:  # noqa: N802
        """All versions of all models, or of one."""
        return pb.ListModelsResponse(models=await self._registry.all_models(request.name))

    async def SetAlias(self, request: pb.SetAliasRequest, context: Context) -> pb.Model:  # noqa: N802
        """Point an alias at a version."""
        return await self._registry.set_alias(request)

    async def DeleteModel(  # noqa: N802
        self, request: pb.DeleteModelRequest, context: Context
    ) -> pb.DeleteModelResponse:
        """Remove a version or all."""
        return pb.DeleteModelResponse(versions_deleted=await self._registry.delete(request))
