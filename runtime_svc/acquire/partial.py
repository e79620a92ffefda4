# SPDX-License-Identifier: Apache-2.0
"""One file that is being fetched: its verified chunks in place, and a bitmap of which are there.

On disk it is a folder named by the file's digest with `data` (allocated in full before the first byte arrives, so
that a full disk shows at once) and `bitmap` (one bit a chunk). The bitmap is a hint about what to hash when the fetch
resumes; no claim in it is believed: every chunk is hashed again when the file is opened, because after a power cut the
bitmap may be ahead of the data. Blocks: call it off the event loop. Thread-safe; one PartialFile for each folder.
"""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from types import TracebackType

from dovetail.artifact import CHUNK_BYTES, FileEntry
from dovetail.digest import sha256_file, sha256_hex
from dovetail.errors import CancelledError, IntegrityError, InvalidInputError
from dovetail.store.durable import (
    PRIVATE_FOLDER_MODE,
    READ_ONLY_MODE,
    clear_place,
    disk_errors,
    give_name,
    make_folder,
    sync_folder,
)

_SYNC_BYTES = 32 << 20
"""Data is flushed this often, so that a power cut costs at most this much; flushing each chunk halves the speed."""


class PartialFile:
    """A file on its way; use it as a context manager.

    Args:
        folder: Where it is kept; its name is the file's digest.
        entry: Size, digest and chunks of the file.

    Raises:
        OverLimitError: The disk has no room for the whole file; nothing new is left behind.
        InvalidInputError: The manifest names a chunk that is empty or larger than chunks are.
    """

    def __init__(self, folder: Path, entry: FileEntry) -> None:
        self._folder = folder
        self._entry = entry
        self._offsets = _offsets(entry)
        self._unsynced_bytes = 0
        for path in (folder / "data", folder / "bitmap"):
            if path.is_symlink() or path.is_dir():
                clear_place(path)
        fresh = not folder.exists()
        make_folder(folder, mode=PRIVATE_FOLDER_MODE)
        try:
            self._data = _open(folder / "data", entry.size_bytes)
            try:
                self._bitmap = _open(folder / "bitmap", (len(entry.chunks) + 7) // 8)
            except BaseException:
                os.close(self._data)
                raise
        except BaseException:
            if fresh:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        self._lock = threading.Lock()  # a write that was left running must not meet descriptors that are closed
        self._closed = False
        self._present = self._verified_chunks()

    def __enter__(self) -> PartialFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def missing(self) -> tuple[int, ...]:
        """Indices of the chunks that are not here yet, in order."""
        return tuple(index for index, present in enumerate(self._present) if not present)

    @property
    def present_bytes(self) -> int:
        """Bytes of the chunks that are here and verified."""
        return sum(chunk.size_bytes for chunk, here in zip(self._entry.chunks, self._present, strict=True) if here)

    def write(self, index: int, data: bytes) -> None:
        """Keep a chunk.

        Raises:
            IntegrityError: The bytes are not what the manifest says; nothing is written.
            OverLimitError: The disk is full.
        """
        chunk = self._entry.chunks[index]
        if len(data) != chunk.size_bytes or sha256_hex(data) != chunk.digest:
            raise IntegrityError(f"chunk {chunk.digest[:12]} of file {self._entry.name} arrived with wrong bytes")
        with self._lock, disk_errors(f"write {len(data)} bytes"):
            self._check_open()
            _pwrite_all(self._data, data, self._offsets[index])
            self._unsynced_bytes += len(data)
            if self._unsynced_bytes >= _SYNC_BYTES:
                os.fdatasync(self._data)
                self._unsynced_bytes = 0
            self._present[index] = True
            self._store_bit(index)

    def finish(self, target: Path) -> None:
        """Check the whole file and move it to its final place, read-only and on disk.

        Raises:
            IntegrityError: Chunks are missing.
            InvalidInputError: The whole file's digest is wrong although every chunk's was right: the manifest
                contradicts itself, and the data is thrown away.
        """
        with self._lock:
            self._check_open()
            self._finish(target)

    def _finish(self, target: Path) -> None:
        if self.missing():
            raise IntegrityError(f"file {self._entry.name} still misses {len(self.missing())} of its chunks")
        if sha256_file(self._folder / "data") != self._entry.digest:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise InvalidInputError(
                f"file {self._entry.name}: all chunks are right but the whole is not {self._entry.digest[:12]}; "
                "the manifest contradicts itself, build the artifact again"
            )
        make_folder(target.parent, mode=PRIVATE_FOLDER_MODE)
        if target.is_dir():
            clear_place(target)
        with disk_errors("move a file"):
            os.fchmod(self._data, READ_ONLY_MODE)
            give_name(self._data, self._folder / "data", target)
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """Close its files; what was fetched stays for the next time. May be called twice."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._data)
                os.close(self._bitmap)

    def _check_open(self) -> None:
        if self._closed:
            raise CancelledError(f"file {self._entry.name}: its fetch was stopped")

    def _verified_chunks(self) -> list[bool]:
        bits = os.pread(self._bitmap, (len(self._entry.chunks) + 7) // 8, 0)
        present = []
        for index, chunk in enumerate(self._entry.chunks):
            claimed = bool(bits[index // 8] >> (index % 8) & 1)
            present.append(
                claimed and sha256_hex(os.pread(self._data, chunk.size_bytes, self._offsets[index])) == chunk.digest
            )
        return present

    def _store_bit(self, index: int) -> None:
        first = index // 8 * 8
        byte = sum(1 << bit for bit, here in enumerate(self._present[first : first + 8]) if here)
        os.pwrite(self._bitmap, bytes((byte,)), index // 8)


def adopt_damaged_file(damaged: Path, folder: Path, entry: FileEntry) -> None:
    """Turn a whole file that failed its check into a partial one, so that only its bad chunks are fetched again."""
    if folder.exists() or damaged.stat().st_size > entry.size_bytes:
        damaged.unlink()
        return
    make_folder(folder, mode=PRIVATE_FOLDER_MODE)
    with disk_errors("move a file"):
        damaged.chmod(0o600)
        os.replace(damaged, folder / "data")
        (folder / "bitmap").write_bytes(b"\xff" * ((len(entry.chunks) + 7) // 8))
        sync_folder(damaged.parent)


def _open(path: Path, size_bytes: int) -> int:
    with disk_errors(f"reserve {size_bytes} bytes"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(descriptor).st_size > size_bytes:
                os.ftruncate(descriptor, size_bytes)
            if size_bytes:
                os.posix_fallocate(descriptor, 0, size_bytes)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _offsets(entry: FileEntry) -> tuple[int, ...]:
    offsets: list[int] = []
    position = 0
    for chunk in entry.chunks:
        if not 0 < chunk.size_bytes <= CHUNK_BYTES:
            raise InvalidInputError(
                f"file {entry.name}: chunk {chunk.digest[:12]} has {chunk.size_bytes} bytes; "
                f"expected 1 to {CHUNK_BYTES}"
            )
        offsets.append(position)
        position += chunk.size_bytes
    return tuple(offsets)


def _pwrite_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
