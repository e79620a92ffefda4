# SPDX-License-Identifier: Apache-2.0
"""Compiler service and worker as processes: their settings, what they wait for, how they end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from compiler_svc.settings import CompilerSettings
from compiler_svc.worker.settings import WorkerSettings
from dovetail.errors import InvalidInputError
from dovetail.pb.v1 import compiler_pb2, registry_pb2
from dovetail.pb.v1.registry_pb2_grpc import ModelRegistryStub
from dovetail.rpc.channel import open_channel
from tests.fakes.compiler_mesh import compiler_mesh
from tests.fixtures_redis import RedisServer

UNROUTED = compiler_pb2.BUILD_PHASE_UNROUTED


# --- settings


def test_all_bad_settings_are_told_together() -> None:
    environ = {
        "DOVETAIL_WORKER_CONCURRENCY": "many",
        "DOVETAIL_LEASE_S": "-1",
        "DOVETAIL_LOG_JSON": "maybe",
        "DOVETAIL_WORKER_ID": "A",
    }

    with pytest.raises(InvalidInputError) as caught:
        WorkerSettings.from_env(environ)

    assert all(name in str(caught.value) for name in environ)


def test_empty_environment_is_enough() -> None:
    assert CompilerSettings.from_env({}).address == "0.0.0.0:7001"
    assert WorkerSettings.from_env({}).worker_id.startswith("worker-")


# --- processes


@asynccontextmanager
async def process(module: str, redis_url: str, root: Path, **environ: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A real process of ours; killed at the end if it still runs."""
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module),
        env={
            "PATH": os.environ["PATH"],
            "TMPDIR": str(root / "tmp"),
            "DOVETAIL_REDIS_URL": redis_url,
            "DOVETAIL_DATA_DIR": str(root / "data"),
            "DOVETAIL_COMPILER_ADDRESS": "127.0.0.1:0",
            **environ,
        },
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            os.killpg(running.pid, signal.SIGKILL)
            await running.communicate()


async def line_with(running: asyncio.subprocess.Process, event: str) -> str:
    assert running.stderr is not None
    async with asyncio.timeout(60):
        while line := (await running.stderr.readline()).decode():
            if event in line:
                return line
    pytest.fail(f"the process ended without {event}")


async def ended(running: asyncio.subprocess.Process) -> tuple[int | None, str]:
    _, text = await asyncio.wait_for(running.communicate(), 60)
    return running.returncode, text.decode()


async def test_service_waits_for_redis_serves_and_stops_on_sigterm(
    redis_factory: Callable[..., RedisServer], tmp_path: Path
) -> None:
    (tmp_path / "tmp").mkdir()
    server = redis_factory()
    server.stop()
    port_file = tmp_path / "port"
    async with process("compiler_svc", server.url, tmp_path, DOVETAIL_PORT_FILE=str(port_file)) as running:
        waiting = await line_with(running, "redis.waiting")
        server.start()
        await line_with(running, "compiler.listening")
        async with open_channel(f"127.0.0.1:{int(port_file.read_text())}") as channel:
            listed = await ModelRegistryStub(channel).ListModels(registry_pb2.ListModelsRequest())  # type: ignore[no-untyped-call]
        running.send_signal(signal.SIGTERM)
        code, _ = await ended(running)

    assert "does not answer" in waiting
    assert list(listed.models) == []
    assert code == 0


async def test_service_says_which_port_is_taken(redis_url: str, tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        async with process("compiler_svc", redis_url, tmp_path, DOVETAIL_COMPILER_ADDRESS=address) as running:
            code, text = await ended(running)

    assert code == 1
    assert "is already in use by another process; choose another with DOVETAIL_COMPILER_ADDRESS or --address" in text
    assert "Traceback" not in text


async def test_service_gives_up_on_redis_after_its_limit(tmp_path: Path) -> None:
    nowhere = f"unix://{tmp_path}/no.sock"
    async with process("compiler_svc", nowhere, tmp_path, DOVETAIL_REDIS_WAIT_S="0") as running:
        code, text = await ended(running)

    assert code == 1
    assert "gave up after 0 s" in text


async def test_service_with_bad_settings_names_them_and_does_not_start(redis_url: str, tmp_path: Path) -> None:
    async with process(
        "compiler_svc", redis_url, tmp_path, DOVETAIL_COMPILER_ADDRESS="7001", DOVETAIL_LOG_LEVEL="loud"
    ) as it:
        code, text = await ended(it)

    assert code == 2
    assert "DOVETAIL_COMPILER_ADDRESS" in text
    assert "DOVETAIL_LOG_LEVEL" in text


async def test_worker_process_told_twice_to_stop_gives_its_build_back_and_leaves_nothing(
    redis_url: str, tmp_path: Path
) -> None:
    (tmp_path / "tmp").mkdir()
    async with compiler_mesh(redis_url, tmp_path) as mesh:
        await mesh.push_digits()
        async with process("compiler_svc.worker", redis_url, tmp_path, DOVETAIL_WORKER_DRAIN_S="600") as running:
            await line_with(running, "worker.ready")
            stream = mesh.compiler.Compile(compiler_pb2.CompileRequest(model="digits", recipes=["ort-fp32"]))
            async for event in stream:
                if event.build.message.startswith(("starting", "optimising")):
                    break
            children = children_of(running.pid)
            running.send_signal(signal.SIGTERM)
            await line_with(running, "worker.draining")
            running.send_signal(signal.SIGTERM)
            code, _ = await ended(running)
            stream.cancel()
        left = (await mesh.compiler.ListBuilds(compiler_pb2.ListBuildsRequest())).builds[0]

    assert children
    assert code == 0
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert list((tmp_path / "tmp" / "dovetail").iterdir()) == []
    assert (left.phase, left.attempts) == (UNROUTED, 0)


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]
