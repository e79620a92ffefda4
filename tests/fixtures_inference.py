# SPDX-License-Identifier: Apache-2.0
"""A real inference server for tests, and the venv in which the unmodified tritonclient lives.

tritonclient needs a newer grpcio than the one we test with as the oldest, and a protobuf below 7, so it is never
installed beside us: it gets a venv in pytest's cache folder, made once and used again.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import pytest

from dovetail.clock import Clock
from dovetail.pb import oip
from dovetail.rpc.server import RpcServer
from runtime_svc.front_ends.options import FrontEndOptions
from runtime_svc.log_control import LogControl
from runtime_svc.model_control import ModelControl
from runtime_svc.repository import Repository
from runtime_svc.server import start_inference_server
from runtime_svc.shared_memory import SharedMemoryRegions
from runtime_svc.trace import Tracer

TRITONCLIENT = "tritonclient[grpc]==2.73.0"


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server on a free port of the loopback, with a client."""

    repository: Repository
    rpc: RpcServer
    channel: grpc.aio.Channel
    stub: oip.Stub

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.rpc.port}"


@asynccontextmanager
async def running_server(
    repository: Repository | None = None,
    *,
    control: ModelControl | None = None,
    clock: Clock | None = None,
    regions: SharedMemoryRegions | None = None,
    tracer: Tracer | None = None,
    logs: LogControl | None = None,
    front_ends: FrontEndOptions | None = None,
) -> AsyncIterator[RunningServer]:
    """Start a server over a repository; at the end, stop it and close the repository."""
    models = repository or Repository()
    rpc = await start_inference_server(
        models, address="127.0.0.1:0", control=control, clock=clock, regions=regions, tracer=tracer, logs=logs,
        front_ends=front_ends,
    )  # fmt: skip
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{rpc.port}", options=unlimited) as channel:
            yield RunningServer(models, rpc, channel, oip.Stub(channel))
    finally:
        await rpc.stop(grace_s=1.0)
        await models.close()


@pytest.fixture
async def inference_server() -> AsyncIterator[RunningServer]:
    """An inference server with an empty repository."""
    async with running_server() as server:
        yield server


@pytest.fixture(scope="session")
def tritonclient_python(request: pytest.FixtureRequest) -> Path:
    """Interpreter of a venv with the unmodified tritonclient; made on first use."""
    assert request.config.cache is not None
    folder = request.config.cache.mkdir("tritonclient-venv")
    python = folder / "venv/bin/python"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # workers of one session, and sessions side by side
        marker = folder / "installed"
        if not marker.exists() or marker.read_text() != TRITONCLIENT or not python.exists():
            _run([sys.executable, "-m", "venv", "--clear", str(folder / "venv")])
            _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", TRITONCLIENT])
            marker.write_text(TRITONCLIENT)
    return python


def _run(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=170, check=False)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(argv)} failed:\n{done.stdout}\n{done.stderr}", pytrace=False)
