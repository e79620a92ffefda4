# SPDX-License-Identifier: Apache-2.0
"""One POSIX shared memory object of another process, read and written by copying.

Nothing is mapped: a mapped object that its owner shrinks kills the reader with SIGBUS, and one that its owner changes
while it is read can turn a length that was checked into another. A copy by `preadv` costs one pass over the bytes and
can do neither. Which objects may be opened at all is the caller's business, see `shared_memory`.

Source: POSIX shm_open (a name is one slash and no other); glibc opens it below /dev/shm with O_NOFOLLOW, as here.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import numpy as np

from dovetail.errors import UnsupportedError

FOLDER = Path("/dev/shm")  # noqa: S108 - where Linux keeps POSIX shared memory objects; never created or listed here
MAX_NAME_BYTES = 255  # NAME_MAX of Linux

_MAX_CALL_BYTES = 1 << 30  # Linux moves at most 2 GiB - 4 KiB a call
_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class SharedMemoryObject:
    """An open object; closed with its last reference, so nobody reads through a number that means another file.

    Safe for several threads: every call names its place.

    Args:
        descriptor: Of the object, open for reading and writing; owned from now on.
    """

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __del__(self) -> None:
        os.close(self._descriptor)

    @property
    def size_bytes(self) -> int:
        """Size at this moment; its owner may change it at any time."""
        return os.fstat(self._descriptor).st_size

    def read(self, offset: int, size_bytes: int) -> memoryview | None:
        """A copy of that many bytes, read-only; None if the object ends before that.

        Raises:
            OSError: The system cannot read it.
        """
        copy = np.empty(size_bytes, dtype=np.uint8).data
        done = 0
        while done < size_bytes:
            moved = os.preadv(self._descriptor, [copy[done : done + _MAX_CALL_BYTES]], offset + done)
            if moved == 0:
                return None
            done += moved
        return copy.toreadonly()

    def write(self, offset: int, data: memoryview) -> bool:
        """Copy the bytes in; False, and nothing is written, if the object ends before their end.

        Raises:
            OSError: The system cannot write it, such as for want of memory.
        """
        if offset + len(data) > self.size_bytes:
            return False
        done = 0
        while done < len(data):
            done += os.pwritev(self._descriptor, [data[done : done + _MAX_CALL_BYTES]], offset + done)
        return True


def object_name(key: str) -> str | None:
    """Name of the object that a key means, without the leading slash; None if no object can have that name."""
    name = key.lstrip("/")
    bad = not name or name in (".", "..") or "/" in name or "\0" in name or len(name.encode()) > MAX_NAME_BYTES
    return None if bad else name


def open_object(name: str, folder: Path = FOLDER) -> SharedMemoryObject | None:
    """The object of that name; None if there is none that may be used.

    Only an ordinary file that lies in the folder itself is one: no link is followed, nothing is created.

    Args:
        name: As `object_name` gives it.
        folder: Where the objects are.

    Raises:
        UnsupportedError: This system keeps no shared memory objects there.
    """
    try:
        above = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise UnsupportedError("this machine has no POSIX shared memory that this server can reach") from exc
    try:
        memory = SharedMemoryObject(os.open(name, _FLAGS, dir_fd=above))
        status = os.fstat(memory._descriptor)
        if stat.S_ISREG(status.st_mode) and status.st_dev == os.fstat(above).st_dev:
            return memory
    except OSError as exc:
        if exc.errno in (errno.EMFILE, errno.ENFILE):
            raise UnsupportedError("this server has no file descriptor left for another shared memory object") from exc
    finally:
        os.close(above)
    return None
