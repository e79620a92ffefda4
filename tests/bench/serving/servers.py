# SPDX-License-Identifier: Apache-2.0
"""The servers that are compared: how each is installed, started, and what it can do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import grpc

from dovetail.pb import oip
from tests.bench.serving.models import LARGE
from tests.bench.serving.venvs import venv_with

HERE = Path(__file__).resolve().parent
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 40.0
ONNXRUNTIME = "onnxruntime==1.31.1"
TOKEN = "bench"


@dataclass(frozen=True, slots=True)
class Server:
    """One server.

    Attributes:
        name: For the table.
        requirements: Of its venv; none: it runs in ours.
        script: What serves.
        arguments: After the folder and the port.
        metadata: That each call carries.
        streams: It speaks Triton's ModelStreamInfer.
        regions: It takes tensors in system shared memory.
    """

    name: str
    requirements: Sequence[str]
    script: str
    arguments: Sequence[str] = ()
    metadata: tuple[tuple[str, str], ...] = ()
    streams: bool = False
    regions: bool = False


SERVERS: Sequence[Server] = (
    Server("dovetail", (), "server_dovetail.py", streams=True, regions=True),
    Server("kserve", ("kserve==0.21.0", ONNXRUNTIME), "server_kserve.py"),
    Server("mlserver", ("mlserver==1.7.1", "grpcio==1.71.2", ONNXRUNTIME), "server_mlserver.py"),
    Server(
        "pytriton",
        ("nvidia-pytriton==0.7.0", ONNXRUNTIME),
        "server_pytriton.py",
        (TOKEN,),
        (("triton-grpc-protocol-triton-access-token", TOKEN),),
        streams=True,
        regions=True,
    ),
)


class StartError(Exception):
    """A server did not start; the text says what it said."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers."""

    server: Server
    process: int
    address: str


@contextmanager
def running(
    server: Server, models: Path, probe: oip.ModelInferRequest, *, also: str | None = LARGE
) -> Iterator[Running]:
    """Start a server and stop it at the end.

    Args:
        server: Which.
        models: Folder for it.
        probe: A request that it answers once it serves.
        also: Another model that must be ready then.

    Raises:
        InstallError: Its venv cannot be made.
        StartError: It does not answer the probe.
    """
    port = _free_ports()
    if server.requirements:
        python = str(venv_with(server.name, server.requirements) / "bin/python")
        argv = [python, str(HERE / server.script)]
    else:
        argv = [sys.executable, "-m", f"tests.bench.serving.{Path(server.script).stem}"]
    libraries = [sysconfig.get_config_var("LIBDIR") or "", os.environ.get("LD_LIBRARY_PATH", "")]
    environ = {**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, libraries))}  # else PyTriton may find another's
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*argv, str(models), str(port), *server.arguments],
            cwd=HERE.parents[2],
            env=environ,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait(process, f"127.0.0.1:{port}", server, probe, also, log)
            yield Running(server, process.pid, f"127.0.0.1:{port}")
        finally:
            _stop(process)


def _wait(
    process: subprocess.Popen[bytes],
    address: str,
    server: Server,
    probe: oip.ModelInferRequest,
    also: str | None,
    log: IO[bytes],
) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with grpc.insecure_channel(address) as channel:
            try:
                stub = oip.Stub(channel)
                stub.ModelInfer(probe, timeout=5, metadata=server.metadata)
                if also is None or stub.ModelReady(oip.ModelReadyRequest(name=also), metadata=server.metadata).ready:
                    return
                problem = f"model {also} is not ready"
            except grpc.RpcError as error:
                problem = f"{error.code().name} {error.details()}"
        if process.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            said = log.read().decode(errors="replace").strip().splitlines()[-3:]
            raise StartError(f"no answer from {server.name} ({problem}); it said: {' | '.join(said)[-400:]}")
        time.sleep(0.25)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and, as it leads a session of its own, whatever it started."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_ports() -> int:
    """A port with two free ones behind it, which some servers want for HTTP and metrics."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                for offset in (1, 2):
                    with socket.socket() as other:
                        other.bind(("127.0.0.1", port + offset))
            except OSError:
                continue
            return port
