# SPDX-License-Identifier: Apache-2.0
"""What may be on a disk after the power goes: a recorder of file operations, and every state that they allow.

Rules, no kinder than those of a journaling file system:
  - what was written to a file since its last fsync may be there, may not be, or partly, piece by piece;
  - names (created, renamed, removed) reach the disk in order, and only an fsync of the folder says how far;
  - an fsync of a file says nothing about its name.
Source: fsync(2); Pillai et al., "All File Systems Are Not Created Equal" (OSDI 2014).
"""

from __future__ import annotations

import os
import random
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest

CALLS = (
    "open", "replace", "rename", "unlink", "rmdir", "mkdir", "pwrite", "write", "ftruncate", "posix_fallocate",
    "fchmod", "chmod", "fsync", "fdatasync",
)  # fmt: skip
PIECE_BYTES = 64  # smaller than any disk's sector, so no kinder than one

Names = Mapping[str, int]  # path below the root -> inode; 0 for a folder
Inode = tuple[int, bytes]  # permissions and content


@dataclass(frozen=True, slots=True)
class Cut:
    """A moment at which the power may go.

    Attributes:
        call: What was about to be done.
        names: All versions of the name space that may be found, the oldest first.
        synced: Inode number -> what it was at its last fsync; one that never had one is missing.
        now: Inode number -> what a process sees.
        marks: What the test noted until then.
    """

    call: str
    names: tuple[Names, ...]
    synced: Mapping[int, Inode]
    now: Mapping[int, Inode]
    marks: frozenset[str]


@dataclass(frozen=True, slots=True)
class Found:
    """Files and folders after a power cut; None stands for a folder."""

    files: tuple[tuple[str, Inode | None], ...]

    def write(self, root: Path) -> None:
        """Make them below a folder that is not there yet."""
        root.mkdir()
        for name, inode in self.files:
            if inode is None:
                (root / name).mkdir(mode=0o700)
            else:
                (root / name).write_bytes(inode[1])
                (root / name).chmod(inode[0])


class RecordedDisk:
    """Records all that changes below a folder.

    Attributes:
        cuts: One for each call, in order.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.RLock()
        self._marks: set[str] = set()
        self._scan: Callable[[], tuple[dict[str, int], dict[int, Inode]]] = lambda: _scan(root)
        names, contents = self._scan()
        self._names: list[Names] = [names]
        self._forced = 0
        self._now: dict[int, Inode] = contents
        self._synced: dict[int, Inode] = dict(contents)
        self._inodes = {os.stat(root / name).st_ino: name for name, inode in names.items() if not inode}
        self.cuts: list[Cut] = []

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Record from now on, until the patch is undone."""
        for name in CALLS:
            patch.setattr(os, name, self._watched(name, getattr(os, name)))

    def mark(self, text: str) -> None:
        """Note something that later cuts will know."""
        with self._lock:
            self._marks.add(text)

    def end(self) -> list[Cut]:
        """All moments, the last of them after everything."""
        with self._lock:
            self._look()
            return [*self.cuts, self._cut("nothing more")]

    def _watched(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            with self._lock:
                self._look()
                self.cuts.append(self._cut(f"{name}{arguments!r}"[:160]))
                result = real(*arguments, **options)
                self._look()
                if name in ("fsync", "fdatasync"):
                    assert isinstance(arguments[0], int)
                    self._flush(os.fstat(arguments[0]))
                return result

        return call

    def _look(self) -> None:
        names, self._now = self._scan()
        if names != self._names[-1]:
            self._names.append(names)
            for name, inode in names.items():
                if not inode:
                    self._inodes[os.stat(self._root / name).st_ino] = name

    def _flush(self, about: os.stat_result) -> None:
        if not stat.S_ISDIR(about.st_mode):
            self._synced[about.st_ino] = self._now.get(about.st_ino, (0o600, b""))
            return
        folder = "" if about.st_ino == os.stat(self._root).st_ino else self._inodes.get(about.st_ino)
        if folder is None:
            return  # outside
        for index in range(len(self._names) - 1, self._forced, -1):
            if _entries(self._names[index], folder) != _entries(self._names[index - 1], folder):
                self._forced = index
                return

    def _cut(self, call: str) -> Cut:
        return Cut(
            call, tuple(self._names[self._forced :]), MappingProxyType(dict(self._synced)),
            MappingProxyType(dict(self._now)), frozenset(self._marks),
        )  # fmt: skip


def states(cut: Cut, rng: random.Random, torn: int) -> Iterator[Found]:
    """What may be found after that cut: for every version of the names all, nothing, and random parts of the data.

    Args:
        cut: The moment.
        rng: Chooses the parts.
        torn: How many random choices for each version of the names.
    """
    for names in cut.names:
        for choose in (_lost, _kept, *(lambda old, new: _torn(old, new, rng),) * torn):
            yield Found(tuple(sorted((name, _chosen(cut, inode, choose)) for name, inode in names.items())))


def _chosen(cut: Cut, inode: int, choose: Callable[[Inode, Inode], Inode]) -> Inode | None:
    if inode == 0:
        return None
    new = cut.now.get(inode) or cut.synced.get(inode) or (0o600, b"")  # gone by now, its name may be found still
    return choose(cut.synced.get(inode, (new[0], b"")), new)


def _lost(old: Inode, new: Inode) -> Inode:
    return old


def _kept(old: Inode, new: Inode) -> Inode:
    return new


def _torn(old: Inode, new: Inode, rng: random.Random) -> Inode:
    if old == new:
        return new
    before, after = old[1], new[1]
    size = rng.choice((len(before), len(after)))
    pieces = [rng.choice((before, after))[at : at + PIECE_BYTES] for at in range(0, size, PIECE_BYTES)]
    return rng.choice((old, new))[0], b"".join(piece.ljust(PIECE_BYTES, b"\0") for piece in pieces)[:size]


def _entries(names: Names, folder: str) -> dict[str, int]:
    return {name: inode for name, inode in names.items() if os.path.dirname(name) == folder}


def _scan(root: Path) -> tuple[dict[str, int], dict[int, Inode]]:
    names: dict[str, int] = {}
    contents: dict[int, Inode] = {}
    for folder, folders, files in os.walk(root):
        inside = Path(folder).relative_to(root)
        for name in folders:
            names[str(inside / name)] = 0
        for name in files:
            path = Path(folder) / name
            with open(path, "rb") as file:
                about = os.fstat(file.fileno())
                contents[about.st_ino] = (stat.S_IMODE(about.st_mode), file.read())
            names[str(inside / name)] = about.st_ino
    return names, contents
