# SPDX-License-Identifier: Apache-2.0
"""The Open Inference Protocol over gRPC: its messages, the service's methods, a client stub and a server handler.

All of it comes from the descriptors in `oip.binpb` and lives in a descriptor pool of its own (see `oip_pb2`), so it can
share a process with `tritonclient.grpc`, which brings its own copy. What is not here: any behaviour of a server
(`runtime_svc.protocol`) or of a client (`dovetail.client`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import grpc.aio
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message

from dovetail.pb import oip_pb2
from dovetail.pb.oip_pb2 import *  # noqa: F403 -- the messages are this module's surface

SERVICE = "inference.GRPCInferenceService"
"""Full name of the service, as health checks and reflection know it."""


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC.

    Attributes:
        name: As in the protocol, such as "ModelInfer".
        request: Message class that callers send.
        response: Message class that they get.
        client_streaming: True if callers send any number of requests.
        server_streaming: True if they get any number of responses.
    """

    name: str
    request: type[Message]
    response: type[Message]
    client_streaming: bool
    server_streaming: bool

    @property
    def path(self) -> str:
        """Path of the HTTP/2 request."""
        return f"/{SERVICE}/{self.name}"

    @property
    def _kind(self) -> str:
        arity = {False: "unary", True: "stream"}
        return f"{arity[self.client_streaming]}_{arity[self.server_streaming]}"


def _methods() -> dict[str, Method]:
    service = next(service for file in oip_pb2.FILES.file for service in file.service)
    message = {f".inference.{name}": value for name, value in vars(oip_pb2).items() if isinstance(value, type)}
    return {
        rpc.name: Method(
            rpc.name, message[rpc.input_type], message[rpc.output_type], rpc.client_streaming, rpc.server_streaming
        )
        for rpc in service.method
    }


METHODS: Mapping[str, Method] = _methods()
"""Name -> method, in the order of the protocol; all 20."""


class Channel(Protocol):
    """What `Stub` needs of a channel; those of `grpc` and of `grpc.aio` both have it."""

    def unary_unary(self, method: str, request_serializer: Any = ..., response_deserializer: Any = ...) -> Any:
        """A callable for one request and one response."""
        ...

    def stream_stream(self, method: str, request_serializer: Any = ..., response_deserializer: Any = ...) -> Any:
        """A callable for streams both ways."""
        ...


class Stub:
    """Client of the service; one callable for each method, typed for `grpc.aio`.

    Over a channel of `grpc` the same callables block instead. Thread-safe as far as its channel is.
    """

    ServerLive: grpc.aio.UnaryUnaryMultiCallable[oip_pb2.ServerLiveRequest, oip_pb2.ServerLiveResponse]
    ServerReady: grpc.aio.UnaryUnaryMultiCallable[oip_pb2.ServerReadyRequest, oip_pb2.ServerReadyResponse]
    ModelReady: grpc.aio.UnaryUnaryMultiCallable[oip_pb2.ModelReadyRequest, oip_pb2.ModelReadyResponse]
    ServerMetadata: grpc.aio.UnaryUnaryMultiCallable[oip_pb2.ServerMetadataRequest, oip_pb2.ServerMetadataResponse]
    ModelMetadata: grpc.aio.UnaryUnaryMultiCallable[oip_pb2.ModelMetadataRequest, oip_pb2.ModelMetadataResponse]
    ModelInfer: grpc.aio.UnaryUnaryMultiCallable[oip_pb2.ModelInferRequest, oip_pb2.ModelInferResponse]
    ModelStreamInfer: grpc.aio.StreamStreamMultiCallable[oip_pb2.ModelInferRequest, oip_pb2.ModelStreamInferResponse]
    ModelConfig: grpc.aio.UnaryUnaryMultiCallable[oip_pb2.ModelConfigRequest, oip_pb2.ModelConfigResponse]
    ModelStatistics: grpc.aio.UnaryUnaryMultiCallable[oip_pb2.ModelStatisticsRequest, oip_pb2.ModelStatisticsResponse]
    RepositoryIndex: grpc.aio.UnaryUnaryMultiCallable[oip_pb2.RepositoryIndexRequest, oip_pb2.RepositoryIndexResponse]
    RepositoryModelLoad: grpc.aio.UnaryUnaryMultiCallable[
        oip_pb2.RepositoryModelLoadRequest, oip_pb2.RepositoryModelLoadResponse
    ]
    RepositoryModelUnload: grpc.aio.UnaryUnaryMultiCallable[
        oip_pb2.RepositoryModelUnloadRequest, oip_pb2.RepositoryModelUnloadResponse
    ]
    SystemSharedMemoryStatus: grpc.aio.UnaryUnaryMultiCallable[
        oip_pb2.SystemSharedMemoryStatusRequest, oip_pb2.SystemSharedMemoryStatusResponse
    ]
    SystemSharedMemoryRegister: grpc.aio.UnaryUnaryMultiCallable[
        oip_pb2.SystemSharedMemoryRegisterRequest, oip_pb2.SystemSharedMemoryRegisterResponse
    ]
    SystemSharedMemoryUnregister: grpc.aio.UnaryUnaryMultiCallable[
        oip_pb2.SystemSharedMemoryUnregisterRequest, oip_pb2.SystemSharedMemoryUnregisterResponse
    ]
    CudaSharedMemoryStatus: grpc.aio.UnaryUnaryMultiCallable[
        oip_pb2.CudaSharedMemoryStatusRequest, oip_pb2.CudaSharedMemoryStatusResponse
    ]
    CudaSharedMemoryRegister: grpc.aio.UnaryUnaryMultiCallable[
        oip_pb2.CudaSharedMemoryRegisterRequest, oip_pb2.CudaSharedMemoryRegisterResponse
    ]
    CudaSharedMemoryUnregister: grpc.aio.UnaryUnaryMultiCallable[
        oip_pb2.CudaSharedMemoryUnregisterRequest, oip_pb2.CudaSharedMemoryUnregisterResponse
    ]
    TraceSetting: grpc.aio.UnaryUnaryMultiCallable[oip_pb2.TraceSettingRequest, oip_pb2.TraceSettingResponse]
    LogSettings: grpc.aio.UnaryUnaryMultiCallable[oip_pb2.LogSettingsRequest, oip_pb2.LogSettingsResponse]

    def __init__(self, channel: Channel) -> None:
        for method in METHODS.values():
            open_callable = getattr(channel, method._kind)
            setattr(
                self,
                method.name,
                open_callable(
                    method.path,
                    request_serializer=method.request.SerializeToString,
                    response_deserializer=method.response.FromString,
                ),
            )


def generic_handler(servicer: object) -> grpc.GenericRpcHandler[Any, Any]:
    """Handler to register with a server: each RPC goes to the servicer's attribute of the same name.

    Methods that the servicer lacks answer UNIMPLEMENTED. Methods are those of `grpc.aio` (coroutines; an async
    generator for ModelStreamInfer) or of `grpc`, as the server is.
    """
    handlers = {
        name: getattr(grpc, f"{method._kind}_rpc_method_handler")(
            getattr(servicer, name),
            request_deserializer=method.request.FromString,
            response_serializer=method.response.SerializeToString,
        )
        for name, method in METHODS.items()
        if hasattr(servicer, name)
    }
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


def pool() -> DescriptorPool:
    """A new pool with this service, health and reflection, for a reflection servicer that describes them all."""
    from grpc_health.v1 import health_pb2
    from grpc_reflection.v1alpha import reflection_pb2

    described = DescriptorPool()
    for file in oip_pb2.FILES.file:
        described.Add(file)
    for module in (health_pb2, reflection_pb2):
        described.Add(_file_proto(module.DESCRIPTOR))
    return described


def _file_proto(descriptor: FileDescriptor) -> FileDescriptorProto:
    proto = FileDescriptorProto()
    descriptor.CopyToProto(proto)
    return proto
