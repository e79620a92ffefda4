# SPDX-License-Identifier: Apache-2.0
"""A Redis of the benchmark's own, with the log of production."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fixtures_redis import find_server_binary

START_S = 10.0


@contextmanager
def own_redis() -> Iterator[str]:
    """Its address while the block runs: a private socket, `appendfsync everysec`."""
    with tempfile.TemporaryDirectory(prefix="dt-") as folder:
        path = Path(folder) / "redis.sock"
        argv = [find_server_binary(), "--port", "0", "--unixsocket", str(path), "--dir", folder, "--save", ""]
        with subprocess.Popen([*argv, "--appendonly", "yes"], stdout=subprocess.DEVNULL) as server:
            try:
                _wait_for(path)
                yield f"unix://{path}"
            finally:
                server.terminate()


def _wait_for(path: Path) -> None:
    deadline_s = time.monotonic() + START_S
    while True:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                return probe.connect(str(path))
            except OSError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.02)
