# SPDX-License-Identifier: Apache-2.0
"""Writing a small file so that after a crash or power cut there is the old one or the new one, never a half one.

What lives here is the order of system calls (write, fsync, rename, fsync of the directory) and nothing else, because
every file of the local cache depends on it and it must be read in one place. Blocks: call it off the event loop.

Source: rename(2) and fsync(2): a rename is atomic, and durable only after its directory was synced.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dovetail.errors import OverLimitError, UnavailableError

PRIVATE_DIR_MODE = 0o700
READ_ONLY_MODE = 0o400
TEMPORARY_SUFFIX = ".tmp"


def write_durable(path: Path, data: bytes, *, mode: int = READ_ONLY_MODE) -> None:
    """Replace a file by new content; atomic, and on disk when it returns.

    Raises:
        OverLimitError: The disk is full.
        UnavailableError: The disk cannot be written.
    """
    make_dir(path.parent)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    with disk_errors(f"write {len(data)} bytes"):
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            try:
                _write_all(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_dir(path.parent)


def make_dir(path: Path) -> None:
    """Make a private directory with its parents; harmless if it is there.

    Raises:
        OverLimitError: The disk is full.
        UnavailableError: The disk cannot be written.
    """
    with disk_errors("make a directory"):
        path.mkdir(mode=PRIVATE_DIR_MODE, parents=True, exist_ok=True)


def sync_dir(path: Path) -> None:
    """Make renames and removals in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn an OSError of the disk into one of ours, whose text holds no path.

    Raises:
        OverLimitError: No space or quota is left.
        UnavailableError: Anything else.
    """
    try:
        yield
    except OSError as exc:
        reason = os.strerror(exc.errno) if exc.errno else str(exc)
        if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OverLimitError(f"could not {doing} in the data directory: {reason}; free some space there") from exc
        raise UnavailableError(
            f"could not {doing} in the data directory: {reason}; check that it is writable (DOVETAIL_DATA_DIR)"
        ) from exc


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
