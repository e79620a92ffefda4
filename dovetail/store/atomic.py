# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all, and the disk's errors in our words.

Every write goes to a new file, is flushed to the disk, and only then gets its name; then the folder is flushed too. So
a reader or a crash sees the old state or the new one and never a part.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dovetail.errors import OverLimitError, UnavailableError

MIN_FREE_BYTES = 64 << 20
"""Room that is left to others (the index's log, the machine itself): a write that would take it is refused."""

_STALE_S = 3600.0  # a temporary file this old belongs to a process that died
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class AtomicFiles:
    """Named files below a directory, each written whole or not at all.

    All methods block; they are safe to call from several threads and processes. Names are relative and already checked.
    """

    def __init__(self, root: Path, min_free_bytes: int, *, mode: int) -> None:
        self._root = root
        self._scratch = root.with_name(root.name + ".tmp")
        self._min_free_bytes = min_free_bytes
        self._mode = mode
        with disk_errors(f"create {root.name}"):
            root.mkdir(parents=True, exist_ok=True)
            self._scratch.mkdir(exist_ok=True)
            self._sweep()

    def read(self, name: str) -> bytes | None:
        """The content, or None if there is no such file."""
        with disk_errors(f"read {name}"):
            try:
                return (self._root / name).read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None

    def exists(self, name: str) -> bool:
        """True if there is such a file."""
        with disk_errors(f"look for {name}"):
            return (self._root / name).is_file()

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a file; durable when it returns. OverLimitError if the disk is full."""
        target = self._root / name
        scratch = self._scratch / secrets.token_hex(16)
        with disk_errors(f"write {name}"):
            self._check_room(len(data), name)
            try:
                descriptor = os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, self._mode)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                self._make_folder(target.parent)
                scratch.replace(target)
                sync_folder(target.parent)
            finally:
                scratch.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Remove a file; removing what is not there is harmless."""
        target = self._root / name
        with disk_errors(f"delete {name}"), suppress(FileNotFoundError, NotADirectoryError):
            target.unlink()
            sync_folder(target.parent)

    def names(self, folder: str) -> Iterator[str]:
        """Names of all files below a folder, in no order."""
        with disk_errors(f"list {folder or 'everything'}"):
            for parent, _, files in os.walk(self._root / folder):
                for file in files:
                    yield (Path(parent) / file).relative_to(self._root).as_posix()

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)  # else a crash could lose the folder with the file that was promised

    def _check_room(self, size_bytes: int, name: str) -> None:
        free = shutil.disk_usage(self._scratch).free
        if free - size_bytes < self._min_free_bytes:
            raise OverLimitError(
                f"no room to write {name}: {free >> 20} MiB are free, {self._min_free_bytes >> 20} MiB must stay free; "
                "delete models, enlarge the disk, or point DOVETAIL_DATA_DIR at another one"
            )

    def _sweep(self) -> None:
        for file in self._scratch.iterdir():
            with suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > _STALE_S:
                    file.unlink()


def sync_folder(folder: Path) -> None:
    """Make names created or removed in a folder survive a power loss. Blocks."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(action: str) -> Iterator[None]:
    """Turn the system's errors into OverLimitError (disk full) or UnavailableError ("could not <action>: …")."""
    try:
        yield
    except OSError as exc:
        if exc.errno in _FULL:
            raise OverLimitError(
                f"could not {action}: the disk or quota is full; delete models, enlarge the disk, "
                "or point DOVETAIL_DATA_DIR at another one"
            ) from exc
        reason = os.strerror(exc.errno) if exc.errno else type(exc).__name__
        raise UnavailableError(f"could not {action}: {reason}; check the disk below DOVETAIL_DATA_DIR") from exc
