# SPDX-License-Identifier: Apache-2.0
"""`inference.GRPCInferenceService`: the RPCs that register shared memory.

System shared memory is served by `runtime_svc.shared_memory`. CUDA's is refused in the words that Triton uses where it
was built without GPUs; what only asks for or takes back regions works, because there are none.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc.aio

from dovetail.errors import InvalidInputError, NotFoundError
from dovetail.pb import oip
from runtime_svc.shared_memory import MAX_NAME_CHARS, SharedMemoryRegions

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class SharedMemoryServicer:
    """Serves the regions of a server.

    Args:
        regions: What is registered.
    """

    def __init__(self, regions: SharedMemoryRegions) -> None:
        self._regions = regions

    async def SystemSharedMemoryStatus(  # noqa: N802
        self, request: oip.SystemSharedMemoryStatusRequest, context: Context
    ) -> oip.SystemSharedMemoryStatusResponse:
        """One region, or all."""
        response = oip.SystemSharedMemoryStatusResponse()
        for region in self._regions.listed(request.name):
            response.regions[region.name].CopyFrom(
                oip.SystemSharedMemoryStatusResponse.RegionStatus(
                    name=region.name, key=region.key, offset=region.offset, byte_size=region.byte_size
                )
            )
        return response

    async def SystemSharedMemoryRegister(  # noqa: N802
        self, request: oip.SystemSharedMemoryRegisterRequest, context: Context
    ) -> oip.SystemSharedMemoryRegisterResponse:
        """Name a part of a shared memory object."""
        self._regions.register(request.name, request.key, request.offset, request.byte_size)
        return oip.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(  # noqa: N802
        self, request: oip.SystemSharedMemoryUnregisterRequest, context: Context
    ) -> oip.SystemSharedMemoryUnregisterResponse:
        """Forget one region, or all."""
        if request.name:
            self._regions.unregister(request.name)
        else:
            self._regions.unregister_all()
        return oip.SystemSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryStatus(  # noqa: N802
        self, request: oip.CudaSharedMemoryStatusRequest, context: Context
    ) -> oip.CudaSharedMemoryStatusResponse:
        """None, whatever name is asked for."""
        name = request.name[:MAX_NAME_CHARS]
        if name in (region.name for region in self._regions.listed()):
            raise NotFoundError(
                f"The region named '{name}' is registered as system shared memory, not CUDA shared memory"
            )
        if name:
            raise NotFoundError(f"Unable to find cuda shared memory region: '{name}'")
        return oip.CudaSharedMemoryStatusResponse()

    async def CudaSharedMemoryRegister(  # noqa: N802
        self, request: oip.CudaSharedMemoryRegisterRequest, context: Context
    ) -> oip.CudaSharedMemoryRegisterResponse:
        """Refused."""
        raise InvalidInputError(
            f"failed to register CUDA shared memory region: '{request.name[:MAX_NAME_CHARS]}', GPUs not supported"
        )

    async def CudaSharedMemoryUnregister(  # noqa: N802
        self, request: oip.CudaSharedMemoryUnregisterRequest, context: Context
    ) -> oip.CudaSharedMemoryUnregisterResponse:
        """Nothing to do: there is none."""
        return oip.CudaSharedMemoryUnregisterResponse()
