# SPDX-License-Identifier: Apache-2.0
"""A Redis as a site runs it, with its data on disk, that a test may kill, restart, empty, freeze or cut off power."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from tests.faults.processes import Process, Zygote
from tests.fixtures_redis import find_server_binary

META_OPTIONS = ("--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction")
BLOB_OPTIONS = ("--appendonly", "no", "--maxmemory-policy", "allkeys-lfu", "--maxmemory", "64mb")
_START_S = 30.0


class RedisProcess:
    """One server on a unix socket; its folder is short, because socket paths end at 107 bytes.

    Attributes:
        url: Its address.
        options: Added to the command line at each start.
    """

    def __init__(self, zygote: Zygote, *options: str) -> None:
        self._zygote = zygote
        self._folder = Path(tempfile.mkdtemp(prefix="dt-"))
        self._process: Process | None = None
        self.options = list(options)
        self.url = f"unix://{self._folder}/redis.sock"

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.alive

    async def start(self) -> None:
        """Start it on the data that there is, and wait until it has loaded it."""
        argv = [find_server_binary(), "--port", "0", "--unixsocket", f"{self._folder}/redis.sock", "--save", ""]
        argv += ["--dir", str(self._folder), *self.options]
        argv += ["--enable-debug-command", "yes"] if _knows_debug_switch(argv[0]) else []
        self._process = await self._zygote.start("exec", {}, self._folder / "redis.log", argv=argv)
        async with asyncio.timeout(_START_S):
            while not await _answers(f"{self._folder}/redis.sock"):
                assert self.alive, f"redis-server ended: {self.log_tail()}"
                await asyncio.sleep(0.005)

    async def kill(self) -> None:
        """SIGKILL it, as the kernel does when memory is short."""
        assert self._process is not None
        await self._process.kill()

    def freeze(self) -> None:
        """Stop it without closing its connections."""
        assert self._process is not None
        self._process.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send(signal.SIGCONT)

    def lose_everything(self) -> None:
        """Remove the data of a killed server, as a fresh container would."""
        for path in self._folder.iterdir():
            if path.name != "redis.log":
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def log_bytes(self) -> int:
        """Size of what is in the append-only file; after a second it is on the disk for good (appendfsync everysec)."""
        return sum(path.stat().st_size for path in self._append_only())

    async def cut_power(self, safe_bytes: int, rng: random.Random) -> int:
        """Kill it and lose some of what was appended after `safe_bytes`; returns bytes lost.

        The cut is at a random byte, also within a command, but not within a transaction, of which all or nothing is
        kept. That is what Redis promises, and not what 6.2.14 does: it leaves a torn one open in its log, writes on
        behind it, and runs the half that is there at the restart after the next.
        """
        await self.kill()
        path = max(self._append_only(), key=lambda item: item.stat().st_mtime_ns)
        size = path.stat().st_size
        kept = _whole_transactions(path.read_bytes(), rng.randint(min(safe_bytes, size), size))
        os.truncate(path, kept)
        return size - kept

    def log_tail(self) -> str:
        log = self._folder / "redis.log"
        return log.read_text(encoding="utf-8", errors="replace")[-2000:] if log.exists() else "no log"

    async def close(self) -> None:
        """End it and remove everything."""
        if self._process is not None:
            await self._process.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _append_only(self) -> list[Path]:
        return list(self._folder.rglob("*.aof"))


async def _answers(path: str) -> bool:
    """True if it has loaded its data: it says PONG and not LOADING."""
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return False
    try:
        writer.write(b"PING\r\n")
        return (await reader.readline()).startswith(b"+PONG")
    except OSError:
        return False
    finally:
        writer.close()


def _whole_transactions(log: bytes, size: int) -> int:
    """The largest size up to `size` at which the log does not end within a transaction.

    Source: redis.io, "Redis serialization protocol specification": a command is an array of bulk strings.
    """
    position, outside = 0, 0
    inside = False
    while position < size:
        head, _, _ = log[position : position + 32].partition(b"\r\n")
        end = position + len(head) + 2
        words = []
        for _ in range(int(head[1:])):
            length = log[end : log.index(b"\r\n", end)]
            start = end + len(length) + 2
            end = start + int(length[1:]) + 2
            words.append(log[start : end - 2].upper())
        inside = words == [b"MULTI"] or (inside and words != [b"EXEC"])
        if end > size:
            return outside if inside else size
        position = end
        outside = outside if inside else end
    return outside


@cache
def _knows_debug_switch(binary: str) -> bool:
    version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    number = version.partition("v=")[2].split(".")[0]
    return number.isdigit() and int(number) >= 7
