# SPDX-License-Identifier: Apache-2.0
"""An `RpcServer` whose clients reach it through front ends.

The server itself listens on a Unix socket in a folder of its own, which nobody else may enter: there the front ends
bring every RPC that is no inference. The port is theirs.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
from pathlib import Path

from dovetail.rpc.lifecycle import write_port_file
from dovetail.rpc.server import RpcServer, ServerOptions
from runtime_svc.front_ends.options import FrontEndOptions
from runtime_svc.front_ends.port import hold_port
from runtime_svc.front_ends.settings import FrontEndSettings
from runtime_svc.front_ends.supervisor import FrontEnds
from runtime_svc.log_control import LogSettings
from runtime_svc.protocol.inference import InferenceCore


class FrontedServer(RpcServer):
    """As `RpcServer`; started and stopped once.

    Args:
        options: Limits, which hold for each front end.
        front_ends: How many, and how they log.
        core: Answers inferences.
    """

    def __init__(self, options: ServerOptions, front_ends: FrontEndOptions, core: InferenceCore) -> None:
        super().__init__(options)
        self._options = options
        self._front_end_options = front_ends
        self._core = core
        self._holder: socket.socket | None = None
        self._folder = ""
        self._public_port = 0
        self.front_ends: FrontEnds | None = None

    @property
    def port(self) -> int:
        """Port that clients reach; 0 before `start`."""
        return self._public_port

    def show_log_settings(self, settings: LogSettings) -> None:
        """Have the front ends log like this process."""
        if self.front_ends is not None:
            self.front_ends.show(settings)

    async def start(self, address: str, *, advice: str = "choose another port", port_file: Path | None = None) -> int:
        """As of `RpcServer`; it returns when all front ends serve.

        Raises:
            InvalidInputError: The address is malformed, or no port.
            UnavailableError: It cannot be bound, or a front end cannot be started.
        """
        self._holder, public = await asyncio.to_thread(hold_port, address, advice=advice)
        try:
            self._folder = await asyncio.to_thread(tempfile.mkdtemp, prefix="dovetail-")  # with mode 0700
            main_address = f"unix:{self._folder}/rpc"
            await super().start(main_address, advice="set TMPDIR to a folder with a short path")
            self.front_ends = FrontEnds(self._front_end_options.count, self._settings(public, main_address), self._core)
            await self.front_ends.start()
            self._public_port = int(public.rpartition(":")[2])
            if port_file is not None:
                await asyncio.to_thread(write_port_file, port_file, self._public_port)
        except BaseException:
            await self.stop(0.0)
            raise
        return self._public_port

    async def stop(self, grace_s: float = 5.0) -> None:
        """As of `RpcServer`: front ends take no more calls, and end when theirs have."""
        self.stopping.set()
        await self.health.enter_graceful_shutdown()
        if self.front_ends is not None:
            await self.front_ends.stop(grace_s)
        await super().stop(0.0)
        if self._folder:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
        if self._holder is not None:
            self._holder.close()

    def _settings(self, address: str, main_address: str) -> FrontEndSettings:
        return FrontEndSettings(
            descriptor=-1,
            address=address,
            main_address=main_address,
            max_message_bytes=self._options.max_message_bytes,
            max_concurrent_rpcs=self._options.max_concurrent_rpcs,
            min_ping_s=self._options.min_ping_s,
            log_level=self._front_end_options.log_level,
            log_json=self._front_end_options.log_json,
        )
