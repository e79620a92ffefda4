# SPDX-License-Identifier: Apache-2.0
"""A gRPC server as every process of ours runs it: errors intercepted, health and reflection on, a clear end.

    rpc = RpcServer()
    add_CompilerServicer_to_server(servicer, rpc.server)
    rpc.serve("dovetail.v1.Compiler")
    port = await rpc.start("0.0.0.0:7001")
    await stop.wait()  # see `lifecycle.run_until_stopped`
    await rpc.stop()

Nothing here knows a service; TLS and roles will hang in at `start` and as a second interceptor.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf import descriptor_pool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from dovetail.errors import UnavailableError
from dovetail.rpc.address import bind_problem, check_address
from dovetail.rpc.interceptor import ErrorInterceptor
from dovetail.rpc.lifecycle import write_port_file

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

HEALTH_SERVICE = "grpc.health.v1.Health"


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Limits of a server.

    Attributes:
        max_message_bytes: Largest message in either direction; 2 GiB - 1 is the most that protobuf can hold.
        max_concurrent_rpcs: Calls served at once; more are refused with RESOURCE_EXHAUSTED. None: no limit.
        min_ping_s: Clients that ping more often than this are disconnected.
    """

    max_message_bytes: int = 8 << 20
    max_concurrent_rpcs: int | None = None
    min_ping_s: float = 5.0

    def channel_arguments(self) -> list[tuple[str, int]]:
        """As gRPC's core wants them."""
        return [
            ("grpc.so_reuseport", 0),  # else two processes may share a port, and a taken port goes unnoticed
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", int(self.min_ping_s * 1000)),
        ]


class RpcServer:
    """One grpc.aio server. Belongs to the event loop it was made in.

    Attributes:
        server: Add servicers here before `start`.
        health: The health service; `start` sets every served name, `stop` takes them back.
        stopping: Set when `stop` begins, so that endless streams can end.
    """

    def __init__(
        self, options: ServerOptions | None = None, *, interceptors: Sequence[grpc.aio.ServerInterceptor] = ()
    ) -> None:
        chosen = options or ServerOptions()
        self.server = grpc.aio.server(
            interceptors=[ErrorInterceptor(), *interceptors],
            options=chosen.channel_arguments(),
            maximum_concurrent_rpcs=chosen.max_concurrent_rpcs,
        )
        self.health = health.aio.HealthServicer()
        self.stopping = asyncio.Event()
        self._names: list[str] = []
        self._pools: list[descriptor_pool.DescriptorPool] = [descriptor_pool.Default()]
        self._port = 0
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)

    @property
    def port(self) -> int:
        """Port it listens on; 0 before `start`."""
        return self._port

    def serve(self, *names: str, pool: descriptor_pool.DescriptorPool | None = None) -> None:
        """Announce services by full name in health and reflection.

        Args:
            names: Such as "dovetail.v1.Compiler".
            pool: Where their descriptors are, if not in the default pool.
        """
        self._names += names
        if pool is not None:
            self._pools.append(pool)

    async def start(self, address: str, *, advice: str = "choose another port", port_file: Path | None = None) -> int:
        """Bind, start serving and report healthy.

        Args:
            address: `host:port`; port 0 takes a free one.
            advice: What to do if the port is taken, such as "choose another with --address".
            port_file: If given, the port is written there once the server answers.

        Returns:
            The port.

        Raises:
            InvalidInputError: The address is malformed.
            UnavailableError: It cannot be bound; the text says why.
        """
        check_address(address)
        try:
            self._port = self.server.add_insecure_port(address)
        except RuntimeError as exc:
            problem = await asyncio.to_thread(bind_problem, address)
            raise UnavailableError(f"{problem or f'{address} cannot be bound'}; {advice}") from exc
        names = [*self._names, HEALTH_SERVICE, reflection.SERVICE_NAME]
        servicer = reflection.aio.ReflectionServicer(names, pool=_PoolChain(self._pools))
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, self.server)
        for name in self._names:
            await self.health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await self.server.start()
        if port_file is not None:
            await asyncio.to_thread(write_port_file, port_file, self._port)
        return self._port

    async def stop(self, grace_s: float = 5.0) -> None:
        """Refuse new calls, let the running ones finish for `grace_s`, then cancel them; may be called twice."""
        self.stopping.set()
        await self.health.enter_graceful_shutdown()
        await self.server.stop(grace_s)


class _PoolChain:
    """Several descriptor pools as one, for reflection: ours keeps the inference protocol out of the default pool."""

    def __init__(self, pools: Sequence[descriptor_pool.DescriptorPool]) -> None:
        self._pools = tuple(pools)

    def FindFileByName(self, name: str) -> Any:  # noqa: N802 - the pool's own names
        return self._first(lambda pool: pool.FindFileByName(name))

    def FindFileContainingSymbol(self, name: str) -> Any:  # noqa: N802
        return self._first(lambda pool: pool.FindFileContainingSymbol(name))

    def FindMessageTypeByName(self, name: str) -> Any:  # noqa: N802
        return self._first(lambda pool: pool.FindMessageTypeByName(name))

    def FindExtensionByNumber(self, message: Any, number: int) -> Any:  # noqa: N802
        return self._first(lambda pool: pool.FindExtensionByNumber(message, number))

    def FindAllExtensions(self, message: Any) -> Any:  # noqa: N802
        return self._first(lambda pool: pool.FindAllExtensions(message))

    def _first(self, find: Callable[[Any], _T]) -> _T:
        for pool in self._pools[:-1]:
            try:
                return find(pool)
            except KeyError:
                continue
        return find(self._pools[-1])
