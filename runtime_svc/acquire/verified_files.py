# SPDX-License-Identifier: Apache-2.0
"""Files that are opened once, hashed through their descriptors, and handed to the engine as those same descriptors.

A name can be given to another file between the check and the load; an open descriptor cannot. So what is hashed here is
held open, and engines get paths of the form /proc/self/fd/<n>, which the kernel resolves to the held file itself and
not to the name that it once had. Every engine opens paths (libraries map, parse and unpack files themselves), so this
one form serves all of them; what they map stays valid after the descriptors are closed.

A file counts only if nobody else can change it by way of another name or another user: regular, ours or root's, without
write permission, and with one name. Blocks: call it off the event loop.

Source: proc(5), /proc/pid/fd: opening such a link opens the file behind the descriptor, also when its name is gone;
    open(2), O_NOFOLLOW; CVE-2020-25860 (what happens to who checks one thing and uses another).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dovetail.artifact import FileEntry
from dovetail.errors import NotFoundError, UnsupportedError
from dovetail.store.durable import disk_errors

_DESCRIPTORS = Path("/proc/self/fd")
_READ_BYTES = 1 << 20


@contextmanager
def open_verified(
    entries: Mapping[FileEntry, Path], refuse: Callable[[FileEntry, str], Exception]
) -> Iterator[dict[str, Path]]:
    """The files of an artifact, checked, while the block runs.

    Args:
        entries: What each file must be -> where it is.
        refuse: Makes the error for a file that is not what it must be, from the entry and the reason.

    Yields:
        Name in the manifest -> path that opens the very bytes that were hashed, in this process and until the end.

    Raises:
        NotFoundError: A file is not there.
        UnavailableError: A file cannot be read.
        UnsupportedError: This system has no /proc.
    """
    if not _DESCRIPTORS.is_dir():
        raise UnsupportedError("a node needs /proc, through which it loads the very bytes that it verified: mount it")
    with ExitStack() as held:
        paths = {}
        for entry, path in entries.items():
            descriptor = _open(entry, path, refuse)
            held.callback(os.close, descriptor)
            if wrong := _what_is_wrong(descriptor, entry):
                raise refuse(entry, wrong)
            paths[entry.name] = _DESCRIPTORS / str(descriptor)
        yield paths


def hash_descriptor(descriptor: int) -> tuple[str, int]:
    """sha256 and size in bytes of all that a descriptor's file holds; its position is neither used nor moved.

    Raises:
        OSError: It cannot be read.
    """
    hasher, position = hashlib.sha256(), 0
    buffer = memoryview(bytearray(_READ_BYTES))
    while count := os.preadv(descriptor, [buffer], position):
        hasher.update(buffer[:count])
        position += count
    return hasher.hexdigest(), position


def _open(entry: FileEntry, path: Path, refuse: Callable[[FileEntry, str], Exception]) -> int:
    what = f"file {entry.name} ({entry.digest[:12]})"
    if path.is_symlink():
        raise refuse(entry, "is a link")
    with disk_errors(f"read {what}"):
        try:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise NotFoundError(f"{what} is not on this machine") from None


def _what_is_wrong(descriptor: int, entry: FileEntry) -> str:
    """Why a file is not what the manifest says; "" if it is."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return "is no regular file"
    if status.st_size != entry.size_bytes:
        return "changed on disk"
    with disk_errors(f"read file {entry.name}"):
        if hash_descriptor(descriptor) != (entry.digest, entry.size_bytes):
            return "changed on disk"
    if status.st_nlink != 1 or status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o222:
        return "could be changed by others (it has another owner, another name, or write permission)"
    return ""
