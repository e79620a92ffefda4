# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all after a crash or power cut, and the disk's errors in our words.

What lives here is the order of system calls (write, fsync, rename, fsync of the folder) and nothing else, because every
file that we promise to keep depends on it and it must be read in one place. Blocks: call it off the event loop.

Source: rename(2) and fsync(2): a rename is atomic, and durable only after its folder was synced.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dovetail.errors import OverLimitError, UnavailableError

PRIVATE_FOLDER_MODE = 0o700
READ_ONLY_MODE = 0o400
TEMPORARY_SUFFIX = ".tmp"

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_durable(
    path: Path, data: bytes, *, what: str, mode: int = READ_ONLY_MODE, temporary: Path | None = None
) -> None:
    """Write or replace a file; atomic, and on disk when it returns. Its folder exists.

    Args:
        path: The file.
        data: Its new content.
        what: What it is, for people; never a path.
        mode: Permissions of the file.
        temporary: Where it is written before it gets its name, on the same disk; if not given, beside it under a name
            that ends in TEMPORARY_SUFFIX.

    Raises:
        OverLimitError: The disk is full.
        UnavailableError: The disk cannot be written.
    """
    temporary = temporary or path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    with disk_errors(f"write {what}"):
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                give_name(file.fileno(), temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def give_name(descriptor: int, temporary: Path, path: Path) -> None:
    """Flush a file that is written whole and give it its final name; on disk when it returns. Raises OSError."""
    os.fsync(descriptor)
    temporary.replace(path)
    sync_folder(path.parent)


def move_durable(path: Path, target: Path) -> None:
    """Move a file to another folder of the same disk; there for good when it returns. Raises OSError."""
    path.rename(target)
    sync_folder(target.parent)  # the new name first: a crash between the two finds the file under one of them
    sync_folder(path.parent)


def make_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Make a folder with its parents, which get default permissions; harmless if it is there.

    Raises:
        OverLimitError: The disk is full.
        UnavailableError: The disk cannot be written.
    """
    with disk_errors("make a folder"):
        if folder.is_dir():
            return
        make_folder(folder.parent)
        folder.mkdir(mode=mode, exist_ok=True)
        sync_folder(folder.parent)  # else a crash could lose the folder with the file that was promised


def clear_place(path: Path) -> None:
    """Remove whatever stands where a file should: a damaged file, a folder, a link. Harmless if nothing does.

    Raises:
        UnavailableError: The disk cannot be written.
    """
    with disk_errors("remove what is in a file's place"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make names created or removed in a folder survive a power loss. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(action: str, *, setting: str = "DOVETAIL_DATA_DIR") -> Iterator[None]:
    """Turn the system's errors into ours: "could not <action>: …", without a path.

    Args:
        action: What is done to which thing.
        setting: The variable that says which disk it is.

    Raises:
        OverLimitError: No space or quota is left.
        UnavailableError: Anything else.
    """
    try:
        yield
    except OSError as exc:
        if exc.errno in _FULL:
            raise OverLimitError(
                f"could not {action}: the disk or quota is full; free some space, enlarge the disk, "
                f"or point {setting} at another one"
            ) from exc
        reason = os.strerror(exc.errno) if exc.errno else type(exc).__name__
        raise UnavailableError(
            f"could not {action}: {reason}; check that the folder of {setting} can be read and written"
        ) from exc
