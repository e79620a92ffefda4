# SPDX-License-Identifier: Apache-2.0
"""The inference server: the protocol's servicer, health for the whole and for each model, reflection, on one port."""

from __future__ import annotations

import asyncio
from pathlib import Path

from grpc_health.v1 import health_pb2

from dovetail.clock import Clock
from dovetail.pb import oip
from dovetail.rpc.server import RpcServer, ServerOptions
from runtime_svc.front_ends.options import FrontEndOptions
from runtime_svc.log_control import LogControl
from runtime_svc.model_control import ModelControl
from runtime_svc.protocol.grpc_aio import MAX_MESSAGE_BYTES, inference_handler
from runtime_svc.protocol.inference import InferenceCore
from runtime_svc.protocol.memory_servicer import SharedMemoryServicer
from runtime_svc.protocol.metadata import EXTENSIONS, SYSTEM_SHARED_MEMORY
from runtime_svc.protocol.servicer import ModelServicer
from runtime_svc.protocol.settings_servicer import SettingsServicer
from runtime_svc.repository import Repository
from runtime_svc.shared_memory import SharedMemoryRegions
from runtime_svc.trace import Tracer


async def start_inference_server(
    repository: Repository,
    *,
    address: str,
    control: ModelControl | None = None,
    options: ServerOptions | None = None,
    clock: Clock | None = None,
    regions: SharedMemoryRegions | None = None,
    tracer: Tracer | None = None,
    logs: LogControl | None = None,
    advice: str = "choose another port",
    port_file: Path | None = None,
    front_ends: FrontEndOptions | None = None,
) -> RpcServer:
    """Serve a repository; its models may come and go while the server runs.

    Health has the overall name "", the service's name (both SERVING while the repository is ready) and each model's.

    Args:
        repository: Stays the caller's: close it after the server is stopped.
        address: `host:port`; port 0 takes a free one.
        control: Loads and unloads models for callers; None refuses both.
        options: Limits; messages up to what gRPC can carry by default.
        clock: Judges deadlines; the models must use the same.
        regions: Shared memory that tensors may lie in; by default clients may register what is meant for it.
        tracer: Traces requests, and stays the caller's to close; None: they cannot be traced.
        logs: What LogSettings changes; the process's logging by default.
        advice: What to do if the port is taken.
        port_file: If given, the port is written there once the server answers.
        front_ends: Processes that speak gRPC in place of this one; None: there are none.

    Raises:
        InvalidInputError: The address is malformed.
        UnavailableError: It cannot be bound, or a front end cannot be started.
    """
    regions, tracer, logs = regions or SharedMemoryRegions(), tracer or Tracer(), logs or LogControl()
    core = InferenceCore(repository, regions=regions, tracer=tracer, clock=clock)
    rpc = _rpc_server(options or ServerOptions(max_message_bytes=MAX_MESSAGE_BYTES), core, logs, front_ends)
    servicers = (
        ModelServicer(
            repository,
            extensions=(*EXTENSIONS, SYSTEM_SHARED_MEMORY) if regions.enabled else EXTENSIONS,
            control=control,
        ),
        SharedMemoryServicer(regions),
        SettingsServicer(repository, tracer, logs),
    )
    rpc.server.add_generic_rpc_handlers([inference_handler(core)])
    rpc.server.add_generic_rpc_handlers([oip.generic_handler(servicer) for servicer in servicers])
    rpc.serve(oip.SERVICE, pool=oip.pool())
    await rpc.start(address, advice=advice, port_file=port_file)
    mirror = HealthMirror(rpc, repository)
    await mirror.show_all()
    repository.add_listener(mirror.on_change)
    return rpc


def _rpc_server(
    options: ServerOptions, core: InferenceCore, logs: LogControl, front_ends: FrontEndOptions | None
) -> RpcServer:
    if front_ends is None:
        return RpcServer(options)
    from runtime_svc.front_ends.server import FrontedServer  # an edge agent has none

    rpc = FrontedServer(options, front_ends, core)
    logs.add_listener(rpc.show_log_settings)
    return rpc


class HealthMirror:
    """Keeps grpc.health.v1 equal to a repository's state. Belongs to the server's event loop."""

    def __init__(self, rpc: RpcServer, repository: Repository) -> None:
        self._rpc = rpc
        self._repository = repository
        self._updates: set[asyncio.Task[None]] = set()

    def on_change(self, name: str) -> None:
        """Show a model's state, and what it means for the whole, as soon as the loop gets to it."""
        update = asyncio.get_running_loop().create_task(self._show(name))
        self._updates.add(update)
        update.add_done_callback(self._updates.discard)

    async def show_all(self) -> None:
        """Show the state of everything."""
        for name in {entry.name for entry in self._repository.index()}:
            await self._show_model(name)
        await self._show_whole()

    async def _show(self, name: str) -> None:
        await self._show_model(name)
        await self._show_whole()

    async def _show_model(self, name: str) -> None:
        await self._rpc.health.set(name, _status(self._repository.serves(name)))

    async def _show_whole(self) -> None:
        for name in ("", oip.SERVICE):
            await self._rpc.health.set(name, _status(self._repository.ready()))


def _status(serving: bool) -> int:
    status = health_pb2.HealthCheckResponse
    return int(status.SERVING if serving else status.NOT_SERVING)
