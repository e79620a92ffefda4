# SPDX-License-Identifier: Apache-2.0
"""The programs of a mesh on one machine: module, settings and readiness of each. Services are known by name only.

Settings travel as DOVETAIL_* variables, as in production. A service writes its port to a file, so port 0 works; the
port that it got is given to it again when it is restarted, so that addresses stay what they were.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import grpc

from dovetail.errors import UnavailableError
from dovetail.mesh.supervisor import Part, is_healthy, read_port_file
from dovetail.pb.v1 import fleet_pb2
from dovetail.pb.v1.fleet_pb2_grpc import FleetStub
from dovetail.rpc.address import bind_problem
from dovetail.rpc.channel import open_channel

HOST = "127.0.0.1"  # one machine, one user: nothing listens beyond loopback


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports of a mesh on loopback; 0 takes a free one.

    Attributes:
        compiler: Registry, builds, negotiation, artifacts.
        runtime: Inference on the runtime service.
        runtime_metrics: Its metrics over HTTP.
        agent: Inference on the edge agent.
        agent_metrics: Its metrics over HTTP.

    Metrics whose port is 0 are off: nobody could find them.
    """

    compiler: int = 7001
    runtime: int = 8001
    runtime_metrics: int = 8002
    agent: int = 8011
    agent_metrics: int = 8012


DEFAULT_PORTS = Ports()
FREE_PORTS = Ports(0, 0, 0, 0, 0)


def check_ports(ports: Ports) -> None:
    """Make sure that the fixed ones among the ports are free, before anything is started.

    Raises:
        UnavailableError: Names every port that is not.
    """
    fixed = {field.name: getattr(ports, field.name) for field in fields(ports) if getattr(ports, field.name)}
    problems = {name: bind_problem(f"{HOST}:{port}") for name, port in fixed.items()}
    found = [f"{name}: {problem}" for name, problem in problems.items() if problem]
    if found:
        raise UnavailableError(f"the mesh cannot start here: {'; '.join(found)}; choose other ports with --port")


class Service:
    """A program with a gRPC server.

    Attributes:
        name: Such as "compiler".
    """

    def __init__(self, name: str, module: str, *, root: Path, port: int) -> None:
        self.name = name
        self._module = module
        self._root = root
        self._port = port
        self._port_file = root / "run" / f"{name}.port"

    @property
    def address(self) -> str:
        """host:port where it answers.

        Raises:
            UnavailableError: It has not started yet.
        """
        if not self._port:
            raise UnavailableError(f"{self.name} has not said on which port it listens")
        return f"{HOST}:{self._port}"

    def part(self, settings: Mapping[str, str], *, address_variable: str, environ: Mapping[str, str]) -> Part:
        """How to start it now.

        Args:
            settings: DOVETAIL_* variables of its own.
            address_variable: The one that gets its address.
            environ: Everything else in its environment.
        """
        self._port_file.parent.mkdir(parents=True, exist_ok=True)
        self._port_file.unlink(missing_ok=True)
        own = {address_variable: f"{HOST}:{self._port}", "DOVETAIL_PORT_FILE": str(self._port_file)}
        return Part(
            name=self.name,
            program=(sys.executable, "-m", self._module),
            log=self._root / "logs" / f"{self.name}.log",
            working_dir=self._root / self.name,
            environ={**environ, **settings, **own},
            ready=self._ready,
        )

    async def _ready(self) -> bool:
        port = read_port_file(self._port_file)
        if port is None or not await is_healthy(f"{HOST}:{port}"):
            return False
        self._port = port
        return True


async def is_reported(compiler: str, node: str) -> bool:
    """True if the compiler service knows the node or worker of that id."""
    async with open_channel(compiler) as channel:
        with contextlib.suppress(grpc.RpcError):
            reply = await FleetStub(channel).ListNodes(fleet_pb2.ListNodesRequest(), timeout=2.0)
            return any(found.id == node for found in reply.nodes)
    return False
