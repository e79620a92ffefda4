# SPDX-License-Identifier: Apache-2.0
"""The process of a front end: a gRPC server on the shared port, a pipe to the main process, and no model.

It lives as long as the main process holds the other end of the pipe. Signals that end a group of processes are the
main process's business, which then says how long the calls that run may go on.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket

import grpc.aio

from dovetail.errors import InvalidInputError
from dovetail.rpc.channel import UNLIMITED_BYTES, ChannelOptions, open_channel
from runtime_svc.front_ends import frames
from runtime_svc.front_ends.calls import Calls
from runtime_svc.front_ends.handlers import Handlers, InferenceErrors
from runtime_svc.front_ends.pipe import FramePipe
from runtime_svc.front_ends.settings import FrontEndSettings
from runtime_svc.log_control import LogControl

_log = logging.getLogger(__name__)


async def run_front_end(settings: FrontEndSettings) -> None:
    """Serve until the main process says stop; the process ends at once when that is gone."""
    for watched in (signal.SIGTERM, signal.SIGINT):
        signal.signal(watched, signal.SIG_IGN)
    await _FrontEnd(settings).run()


class _FrontEnd:
    def __init__(self, settings: FrontEndSettings) -> None:
        self._settings = settings
        self._grace: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._logs = LogControl()
        self._pipe = FramePipe(socket.socket(fileno=settings.descriptor), self._on_frame, _on_lost)
        self._calls = Calls(self._pipe)

    async def run(self) -> None:
        settings = self._settings
        options = ChannelOptions(max_message_bytes=UNLIMITED_BYTES)
        async with open_channel(settings.main_address, options) as channel:
            server = grpc.aio.server(
                interceptors=[InferenceErrors()],
                options=settings.channel_arguments(),
                maximum_concurrent_rpcs=settings.max_concurrent_rpcs,
            )
            server.add_generic_rpc_handlers([Handlers(self._calls, channel)])
            try:
                server.add_insecure_port(settings.address)
            except RuntimeError:
                self._pipe.send(frames.READY, body=f"{settings.address} cannot be bound".encode())
            else:
                await server.start()
                self._pipe.send(frames.READY)
                await server.stop(await self._grace)
        self._pipe.close()

    def _on_frame(self, kind: int, _flags: int, number: int, value: float, body: bytes) -> None:
        if kind == frames.STOP:
            if not self._grace.done():
                self._grace.set_result(value)
        elif kind == frames.LOGS:
            self._logs.update(json.loads(body))
        elif kind in (frames.MESSAGE, frames.END, frames.CREDIT, frames.ERROR, frames.DROP):
            self._calls.on_frame(kind, number, value, body)
        else:
            raise InvalidInputError(f"a frame of kind {kind} does not come from the main process")


def _on_lost(reason: str) -> None:
    """The main process is gone, or mad: no call here can be answered any more, and clients see the connection end."""
    _log.error("front_end.alone why=%r", reason or "the main process has ended")
    logging.shutdown()
    os._exit(1)
