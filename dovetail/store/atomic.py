# SPDX-License-Identifier: Apache-2.0
"""A directory of named files, each there whole or not at all, that never fills its disk.

How a file gets to the disk is `durable`'s business; what is in it, that of `disk`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dovetail.errors import OverLimitError
from dovetail.store.durable import disk_errors, make_folder, move_durable, sync_folder, write_durable

MIN_FREE_BYTES = 64 << 20
"""Room that is left to others (the index's log, the machine itself): a write that would take it is refused."""

_STALE_S = 3600.0  # a temporary file this old belongs to a process that died
_ABSENT = (FileNotFoundError, NotADirectoryError)


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
            except (*_ABSENT, IsADirectoryError):
                return None

    def stat(self, name: str) -> os.stat_result | None:
        """Size and times of a file, or None if there is none."""
        with disk_errors(f"look for {name}"), suppress(*_ABSENT):
            return (self._root / name).stat()
        return None

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a file; durable when it returns. OverLimitError if the disk is full."""
        target = self._root / name
        with disk_errors(f"write {name}"):
            self._check_room(len(data), name)
        make_folder(target.parent)
        write_durable(target, data, what=name, mode=self._mode, temporary=self._scratch / secrets.token_hex(16))

    def touch(self, name: str) -> bool:
        """Give a file the time of now, if it is there; returns whether it is.

        The time is not synced: a power cut may take back the last seconds of it.
        """
        with disk_errors(f"touch {name}"):
            try:
                os.utime(self._root / name)
            except _ABSENT:
                return False
            except PermissionError:  # another user's file: only by writing it anew does it get our time
                data = self.read(name)
                if data is None:
                    return False
                self.write(name, data)
            return True

    def move(self, name: str, target: AtomicFiles) -> bool:
        """Move a file to a directory on the same disk; durable when it returns. Returns whether it was there."""
        with disk_errors(f"move {name}"):
            make_folder((target._root / name).parent)
            try:
                move_durable(self._root / name, target._root / name)
            except _ABSENT:
                return False
            return True

    def delete(self, name: str) -> bool:
        """Remove a file, durably; removing what is not there is harmless. Returns whether it was there."""
        target = self._root / name
        with disk_errors(f"delete {name}"):
            try:
                target.unlink()
            except _ABSENT:
                return False
            sync_folder(target.parent)
            return True

    def folders(self) -> list[str]:
        """Names of the folders right below the directory, sorted."""
        with disk_errors("list the folders"), os.scandir(self._root) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))

    def stats(self, folder: str) -> list[tuple[str, os.stat_result]]:
        """The files right in a folder, without its name, with size and times; in no order."""
        found = []
        with disk_errors(f"list {folder}"), suppress(*_ABSENT), os.scandir(self._root / folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # gone since
                    if entry.is_file(follow_symlinks=False):
                        found.append((entry.name, entry.stat(follow_symlinks=False)))
        return found

    def names(self, folder: str) -> Iterator[str]:
        """Names of all files below a folder, in no order."""
        with disk_errors(f"list {folder or 'everything'}"):
            for parent, _, files in os.walk(self._root / folder):
                for file in files:
                    yield (Path(parent) / file).relative_to(self._root).as_posix()

    def now_ns(self) -> int:
        """The time by the clock that gives files theirs, which on a network disk is the server's."""
        probe = self._scratch / secrets.token_hex(16)
        with disk_errors("read the disk's clock"):
            try:
                probe.touch(exist_ok=False)
                return probe.stat().st_mtime_ns
            finally:
                probe.unlink(missing_ok=True)

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
