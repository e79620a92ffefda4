# SPDX-License-Identifier: Apache-2.0
"""Real Redis processes on TCP ports: single, as a cluster, and as a primary with a replica and Sentinels."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis

from tests.fixtures_redis import find_server_binary

START_TIMEOUT_S = 30.0
_PR_SET_PDEATHSIG = 1
_BUS_OFFSET = 10000  # a cluster node also listens there


class RedisNode:
    """One process; its folder holds its configuration, which Sentinels rewrite."""

    def __init__(self, *options: str, lines: str = "", sentinel: bool = False) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="dt-"))
        self._options = options
        self._sentinel = sentinel
        config = self.folder / "redis.conf"
        config.write_text(lines)
        self._argv = [find_server_binary(), str(config), "--port", str(self.port), "--bind", "127.0.0.1"]
        self._argv += ["--dir", str(self.folder), "--logfile", "log", *options]
        self._argv += ["--sentinel"] if sentinel else ["--save", "", "--appendonly", "no"]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._process = subprocess.Popen(self._argv, stdout=subprocess.DEVNULL, preexec_fn=_die_with_parent)

        def listens() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, (self.folder / "log").read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5):
                return True
            return False

        until(listens)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(START_TIMEOUT_S)
            self._process = None

    def pause(self) -> None:
        """Stop the process without closing its connections, as a machine that hangs does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def say(self, *command: Any) -> Any:
        """Run a command as an operator would."""
        with redis.Redis(host="127.0.0.1", port=self.port, protocol=2) as client:
            return client.execute_command(*command)


@contextlib.contextmanager
def running(*nodes: RedisNode) -> Iterator[None]:
    """The nodes, started and in the end removed."""
    try:
        for node in nodes:
            node.start()
        yield
    finally:
        for node in nodes:
            node.close()


class Cluster:
    """Three primaries, of which the first has a replica."""

    def __init__(self, *options: str) -> None:
        options = (
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            "1000",
            "--repl-diskless-sync-delay",
            "0",
            *options,
        )
        self.nodes = [RedisNode(*options) for _ in range(4)]
        self.primaries, self.replica = self.nodes[:3], self.nodes[3]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.primaries[1:])

    def form(self) -> None:
        """Give each primary a third of the slots, and wait until all agree."""
        for number, node in enumerate(self.primaries):
            node.say("CLUSTER", "ADDSLOTS", *range(number * 16384 // 3, (number + 1) * 16384 // 3))
            node.say("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            node.say("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
        until(lambda: all(self._info(node, "cluster_known_nodes") == "4" for node in self.nodes))
        self.replica.say("CLUSTER", "REPLICATE", self.id_of(self.primaries[0]))
        until(lambda: all(self._info(node, "cluster_state") == "ok" for node in self.nodes))
        until(lambda: self.replica.say("INFO")["master_link_status"] == "up")
        until(lambda: all(len(node.say("CLUSTER", "SLOTS")) == 3 for node in self.nodes))

    def id_of(self, node: RedisNode) -> str:
        return str(node.say("CLUSTER", "MYID").decode())

    def owner_of(self, key: str) -> RedisNode:
        """The primary whose slot a key is in."""
        slot = self.slot_of(key)
        for start, end, primary, *_ in self.nodes[1].say("CLUSTER", "SLOTS"):
            if start <= slot <= end:
                return next(node for node in self.nodes if node.port == primary[1])
        raise AssertionError(slot)

    def slot_of(self, key: str) -> int:
        return int(self.nodes[1].say("CLUSTER", "KEYSLOT", key))

    def _info(self, node: RedisNode, name: str) -> str:
        said = dict(line.split(":", 1) for line in node.say("CLUSTER", "INFO").decode().split("\r\n") if line)
        return said[name]


class Watched:
    """A primary with a replica, and one Sentinel that decides alone; they may know it by another port than its own."""

    def __init__(self, primary: RedisNode | None = None, known_port: int = 0) -> None:
        self.primary = primary or RedisNode("--repl-diskless-sync-delay", "0")
        port = known_port or self.primary.port
        self.replica = RedisNode("--repl-diskless-sync-delay", "0", "--replicaof", "127.0.0.1", str(port))
        lines = (
            f"sentinel monitor mesh 127.0.0.1 {port} 1\n"
            "sentinel down-after-milliseconds mesh 500\n"
            "sentinel failover-timeout mesh 3000\n"
        )
        self.sentinel = RedisNode(lines=lines, sentinel=True)
        self.nodes = (self.primary, self.replica, self.sentinel)

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{self.sentinel.port}/mesh"

    def settle(self) -> None:
        """Wait until the Sentinel knows the replica, and that has all data."""
        until(lambda: self.replica.say("INFO")["master_link_status"] == "up")
        until(lambda: len(self.sentinel.say("SENTINEL", "REPLICAS", "mesh")) == 1)


def free_port() -> int:
    """A port that nobody listens on, whose bus port is free too."""
    while True:
        with socket.socket() as one, socket.socket() as bus:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            if port + _BUS_OFFSET > 65535:
                continue
            with contextlib.suppress(OSError):
                bus.bind(("127.0.0.1", port + _BUS_OFFSET))
                return port


def until(is_so: Callable[[], bool]) -> None:
    """Wait for a condition."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
