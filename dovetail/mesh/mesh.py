# SPDX-License-Identifier: Apache-2.0
"""The whole mesh on one machine: private Redis, compiler service, workers, runtime service and edge agent.

The same programs with the same settings as in production; only addresses differ. Everything it keeps is under one data
directory, so that a later mesh there has all that this one had:

    redis/  blobs/  compiler/  worker-1/ …  runtime/  agent/  keys/  logs/  run/

The first worker that starts there makes the key that all of them sign with; the nodes trust its public half. Settings
in the environment win: DOVETAIL_SIGNING_KEY, DOVETAIL_TRUST, DOVETAIL_TRUSTED_KEYS.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from dovetail.errors import DovetailError
from dovetail.mesh.data_lock import locked
from dovetail.mesh.parts import DEFAULT_PORTS, HOST, Ports, Service, check_ports, is_reported
from dovetail.mesh.process import ChildProcess
from dovetail.mesh.redis_server import find_redis_program, private_socket, redis_part
from dovetail.mesh.supervisor import Part, Supervisor

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MeshOptions:
    """What to start.

    Attributes:
        data_dir: Where everything is kept.
        environ: Environment that the programs inherit; DOVETAIL_* variables in it tune them.
        ports: Where the services listen.
        workers: How many build workers.
    """

    data_dir: Path
    environ: Mapping[str, str] = field(repr=False)
    ports: Ports = DEFAULT_PORTS
    workers: int = 1


class Mesh:
    """A running mesh; use it as `async with Mesh(options) as mesh:`, in the main thread's event loop.

    Parts have the names "redis", "compiler", "worker-1" …, "runtime" and "agent".
    """

    def __init__(self, options: MeshOptions, *, on_step: Callable[[str], None] | None = None) -> None:
        """Prepare; nothing is started yet.

        Args:
            options: What to start.
            on_step: Told about each part before it is started, for people who wait.
        """
        self.options = options
        self._root = options.data_dir.resolve()
        self._on_step = on_step or (lambda _: None)
        self._supervisor = Supervisor()
        self._held = contextlib.AsyncExitStack()
        ports = options.ports
        self._compiler = self._service("compiler", "compiler_svc", ports.compiler)
        self._runtime = self._service("runtime", "runtime_svc", ports.runtime)
        self._agent = self._service("agent", "edge_agent", ports.agent)

    def _service(self, name: str, module: str, port: int) -> Service:
        return Service(name, module, root=self._root, port=port)

    @property
    def compiler_address(self) -> str:
        """host:port of the compiler service."""
        return self._compiler.address

    @property
    def runtime_address(self) -> str:
        """host:port of inference on the runtime service."""
        return self._runtime.address

    @property
    def agent_address(self) -> str:
        """host:port of inference on the edge agent."""
        return self._agent.address

    async def __aenter__(self) -> Self:
        """Start everything; if one part fails, all are stopped again.

        Raises:
            PreconditionError: The data directory is in use or cannot be written.
            UnsupportedError: No usable Redis server on this machine.
            UnavailableError: A port is taken, or a part ended; the end of its log is in the text.
            DeadlineError: A part was not ready in time.
        """
        try:
            await self._start()
        except BaseException:
            await asyncio.shield(self._held.aclose())
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop everything, the last started first; nothing is left but the data directory."""
        await asyncio.shield(self._held.aclose())

    async def kill(self, name: str) -> None:
        """Kill a part at once, as a crash or a power cut would; it stays down until `restart`."""
        await self._supervisor.kill(name)

    async def stop(self, name: str) -> None:
        """Stop a part in order; it stays down until `restart`."""
        await self._supervisor.stop(name)

    async def restart(self, name: str) -> None:
        """Stop a part if it runs, start it again at the same address, and wait until it is healthy."""
        await self._supervisor.restart(name)

    def process(self, name: str) -> ChildProcess:
        """The process of a part."""
        return self._supervisor.child(name)

    async def keep_running(self, on_end: Callable[[DovetailError], None]) -> None:
        """Start parts again that end by themselves; runs until cancelled.

        Args:
            on_end: Told about each such end.
        """
        await self._supervisor.keep_running(on_end)

    async def _start(self) -> None:
        self._held.enter_context(locked(self._root))
        await asyncio.to_thread(check_ports, self.options.ports)
        program = await find_redis_program(search_path=self.options.environ.get("PATH"))
        socket = self._held.enter_context(private_socket())
        self._held.push_async_callback(self._supervisor.stop_all)
        environ = {**self.options.environ, "DOVETAIL_REDIS_URL": f"unix://{socket}"}
        self._on_step(f"starting {program}")
        await self._supervisor.start(
            lambda: redis_part(
                program, socket=socket, data_dir=self._root / "redis",
                log=self._root / "logs" / "redis.log", environ=self.options.environ,
            )
        )  # fmt: skip
        self._on_step("starting the compiler service")
        await self._supervisor.start(lambda: self._compiler_part(environ))
        for number in range(1, self.options.workers + 1):
            self._on_step(f"starting build worker {number}")
            await self._supervisor.start(partial(self._worker_part, f"worker-{number}", environ))
        self._on_step("starting the runtime service and the edge agent")
        await asyncio.gather(
            self._supervisor.start(lambda: self._node_part(self._runtime, self.options.ports.runtime_metrics)),
            self._supervisor.start(lambda: self._node_part(self._agent, self.options.ports.agent_metrics)),
        )
        _log.info("mesh.started data_dir=%s", self._root)

    def _store_settings(self, name: str) -> dict[str, str]:
        return {
            "DOVETAIL_BLOB_DIR": str(self._root / "blobs"),
            "DOVETAIL_SCRATCH_DIR": str(self._root / name / "scratch"),
        }

    def _signing(self) -> dict[str, str]:
        return {
            "DOVETAIL_SIGNING_KEY": str(self._root / "keys" / "worker.pem"),
            "DOVETAIL_MAKE_KEY": "yes",
            "DOVETAIL_PUBLIC_KEY_DIR": str(self._root / "keys" / "trusted"),
        }

    def _compiler_part(self, environ: Mapping[str, str]) -> Part:
        settings = self._store_settings("compiler")
        return self._compiler.part(settings, address_variable="DOVETAIL_COMPILER_ADDRESS", environ=environ)

    def _worker_part(self, name: str, environ: Mapping[str, str]) -> Part:
        return Part(
            name=name,
            program=(sys.executable, "-m", "compiler_svc.worker"),
            log=self._root / "logs" / f"{name}.log",
            working_dir=self._root / name,
            environ={**self._signing(), **environ, **self._store_settings(name), "DOVETAIL_WORKER_ID": name},
            ready=lambda: is_reported(self._compiler.address, name),
            grace_s=30.0,
        )

    def _node_part(self, service: Service, metrics_port: int) -> Part:
        settings = {
            "DOVETAIL_COMPILER": self._compiler.address,
            "DOVETAIL_DATA_DIR": str(self._root / service.name),
            "DOVETAIL_NODE": service.name,
            "DOVETAIL_METRICS": f"{HOST}:{metrics_port}" if metrics_port else "off",
        }
        trust = {"DOVETAIL_TRUSTED_KEYS": str(self._root / "keys" / "trusted")}
        environ = {**trust, **self.options.environ}
        return service.part(settings, address_variable="DOVETAIL_ADDRESS", environ=environ)
