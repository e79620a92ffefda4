# SPDX-License-Identifier: Apache-2.0
"""What this machine keeps on disk: verified files, files on their way, and manifests, all named by digest.

    <root>/cas/sha256/ab/<digest>     whole files, read-only
    <root>/partial/<digest>/          files being fetched (see `partial.py`)
    <root>/manifests/<digest>         canonical manifests, byte for byte as they came
    <root>/envelopes/<digest>         the envelope that manifest was signed with, under the manifest's digest

No name that came from outside is ever a file name. Space is reserved before the first byte is fetched, and only files
that nobody needs are evicted: never those of an artifact that serves, of the previous one, or of one on its way.
Which artifacts those are is said by the slot journals (`slots.py`); this file does not know models. All methods block
(call them off the event loop) and are thread-safe.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dovetail.artifact import MAX_MANIFEST_BYTES, FileEntry, Manifest
from dovetail.digest import DIGEST_PATTERN, check_digest, sha256_hex
from dovetail.errors import DovetailError, IntegrityError, NotFoundError, OverLimitError
from dovetail.store.durable import (
    PRIVATE_FOLDER_MODE,
    TEMPORARY_SUFFIX,
    clear_place,
    disk_errors,
    make_folder,
    write_durable,
)
from dovetail.trust.dsse import MAX_ENVELOPE_BYTES
from runtime_svc.acquire.needed import needed_files
from runtime_svc.acquire.partial import PartialFile, adopt_damaged_file
from runtime_svc.acquire.verified_files import open_verified

_log = logging.getLogger(__name__)

KEEP_FREE_BYTES = 16 << 20
"""Left free on the disk for journals, logs and the rest of the system."""


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest with what its signature is checked against, at every start anew.

    Attributes:
        manifest: What `data` says.
        digest: Digest of `data`, under which the machine keeps it.
        data: The bytes as they came.
        envelope: The signed envelope that came with them; b"" if none did.
    """

    manifest: Manifest
    digest: str
    data: bytes
    envelope: bytes = b""

    @property
    def title(self) -> str:
        """The artifact, for people."""
        found = self.manifest
        return f"artifact {found.artifact_key[:12]} ({found.recipe.name}) of model {found.model}"


class LocalCache:
    """The machine's store of artifacts.

    Args:
        root: Directory that only this process writes.
        quota_bytes: Most that files and partial files may take together; 0: as much as the disk has.
        free_bytes: Free bytes of the disk under a path.
        keep_free_bytes: Never fill the disk further than this.
    """

    def __init__(
        self,
        root: Path,
        *,
        quota_bytes: int = 0,
        free_bytes: Callable[[Path], int] | None = None,
        keep_free_bytes: int = KEEP_FREE_BYTES,
    ) -> None:
        self._files = root / "cas" / "sha256"
        self._partials = root / "partial"
        self._manifests = root / "manifests"
        self._envelopes = root / "envelopes"
        self._quota_bytes = quota_bytes
        self._free_bytes = free_bytes or _disk_free_bytes
        self._keep_free_bytes = keep_free_bytes
        self._lock = threading.Lock()
        self._held: dict[str, int] = {}
        for folder in (self._files, self._partials, self._manifests, self._envelopes):
            make_folder(folder, mode=PRIVATE_FOLDER_MODE)
        _remove_leftovers(root)

    def put_manifest(self, data: bytes, envelope: bytes = b"") -> StoredManifest:
        """Keep a manifest, whose bytes are what its digest names, with the envelope that it came in.

        Raises:
            InvalidInputError: Not a manifest.
            OverLimitError: The disk is full.
        """
        stored = StoredManifest(Manifest.from_bytes(data), sha256_hex(data), data, envelope)
        if envelope:  # first: a manifest on disk has its envelope beside it, whenever the power goes
            _keep(self._envelopes / stored.digest, envelope, f"envelope of manifest {stored.digest[:12]}")
        _keep(self._manifests / stored.digest, data, f"manifest {stored.digest[:12]}")
        return stored

    def manifest(self, digest: str) -> StoredManifest:
        """A manifest that was kept, with its envelope.

        Raises:
            NotFoundError: It is not here.
            IntegrityError: Its bytes changed on disk; it is removed.
        """
        path = self._manifests / check_digest(digest, "manifest digest")
        data = _read(path, MAX_MANIFEST_BYTES + 1)
        if data is None:
            raise NotFoundError(f"manifest {digest[:12]} is not on this machine")
        if sha256_hex(data) != digest:
            clear_place(path)
            raise IntegrityError(f"manifest {digest[:12]} changed on disk; it was removed and will be fetched again")
        envelope = _read(self._envelopes / digest, MAX_ENVELOPE_BYTES + 1) or b""
        return StoredManifest(Manifest.from_bytes(data), digest, data, envelope)

    def path(self, digest: str) -> Path:
        """Where the file with that digest is, or would be."""
        return self._files / check_digest(digest)[:2] / digest

    def has(self, entry: FileEntry) -> bool:
        """True if the file is here with the right size; its content is checked by `verified`."""
        try:
            return self.path(entry.digest).stat().st_size == entry.size_bytes
        except OSError:  # nothing there, or nothing that can be used
            return False

    @contextmanager
    def verified(self, manifest: Manifest) -> Iterator[dict[str, Path]]:
        """Every file of an artifact, hashed, and held open while the block runs.

        Yields:
            Name in the manifest -> path that opens the very bytes that were hashed, whatever happens to their names.

        Raises:
            NotFoundError: A file is not here.
            IntegrityError: A file is not what the manifest says. It is taken out of the store, so nothing can load it,
                and what is still right of it saves fetching those chunks again.
        """
        places = {entry: self.path(entry.digest) for entry in needed_files(manifest)}
        with open_verified(places, self._set_aside) as files:
            yield files

    def _set_aside(self, entry: FileEntry, wrong: str) -> IntegrityError:
        path = self.path(entry.digest)
        if path.is_file() and not path.is_symlink() and path.stat().st_nlink == 1:
            adopt_damaged_file(path, self._partials / entry.digest, entry)
        else:  # nothing of what others can reach by another name is kept
            clear_place(path)
        _log.warning("cache.file_damaged file=%s digest=%s why=%r", entry.name, entry.digest, wrong)
        return IntegrityError(f"file {entry.name} ({entry.digest[:12]}) {wrong}; it will be fetched again")

    def open_partial(self, entry: FileEntry) -> PartialFile:
        """The file on its way, with whatever was fetched before.

        Raises:
            OverLimitError: No room.
        """
        return PartialFile(self._partials / check_digest(entry.digest), entry)

    @contextmanager
    def hold(self, digest: str) -> Iterator[None]:
        """Protect the artifact of that manifest from eviction while it is being acquired or tried."""
        with self._lock:
            self._held[digest] = self._held.get(digest, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._held[digest] -= 1
                if not self._held[digest]:
                    del self._held[digest]

    def reserve(self, stored: StoredManifest, keep: Iterable[str]) -> None:
        """Allocate room for all files of an artifact that are not here, evicting what nobody needs.

        Args:
            stored: The artifact.
            keep: Digests of the manifests that serve or are kept for rollback.

        Raises:
            OverLimitError: There is no room even so; says how much is missing and what to do. Nothing is left behind.
        """
        with self._lock:
            wanted = [entry for entry in needed_files(stored.manifest) if not self.has(entry)]
            new_bytes = sum(max(0, entry.size_bytes - self._allocated_bytes(entry)) for entry in wanted)
            if new_bytes > self._room_bytes():
                self._evict(new_bytes, {stored.digest, *keep, *self._held})
            room = self._room_bytes()
            if new_bytes > room:
                raise OverLimitError(self._no_room(stored.manifest, new_bytes, room))
            self._allocate(wanted)

    def collect(self, keep: Iterable[str], model: str = "") -> None:
        """Remove files, partial files and manifests that belong to none of those manifests and are not held.

        Args:
            keep: Digests of manifests.
            model: Leave alone what belongs to other models, whose fetches may only be interrupted; "": leave nothing.
        """
        with self._lock:
            others = {
                digest for digest in self._manifests_here() if model and self._model_of(digest) not in ("", model)
            }
            self._evict(None, {*keep, *others, *self._held})

    def _manifests_here(self) -> list[str]:
        return [path.name for path in self._manifests.iterdir() if DIGEST_PATTERN.fullmatch(path.name)]

    def _model_of(self, digest: str) -> str:
        """Model of a manifest; "" if it cannot be read."""
        try:
            return self.manifest(digest).manifest.model
        except DovetailError:
            return ""

    def _allocate(self, wanted: list[FileEntry]) -> None:
        fresh = [entry for entry in wanted if not (self._partials / entry.digest).exists()]
        try:
            for entry in wanted:
                self.open_partial(entry).close()
        except DovetailError:
            for entry in fresh:
                shutil.rmtree(self._partials / entry.digest, ignore_errors=True)
            raise

    def _room_bytes(self) -> int:
        room = self._free_bytes(self._files) - self._keep_free_bytes
        if self._quota_bytes:
            room = min(room, self._quota_bytes - self._used_bytes())
        return max(0, room)

    def _used_bytes(self) -> int:
        return sum(_size_bytes(path) for path in (*self._stored_files(), *self._partials.glob("*/data")))

    def _allocated_bytes(self, entry: FileEntry) -> int:
        return _size_bytes(self._partials / entry.digest / "data")

    def _no_room(self, manifest: Manifest, needed: int, room: int) -> str:
        limit = (
            f"its quota is {self._quota_bytes} bytes (DOVETAIL_CACHE_BYTES)"
            if self._quota_bytes
            else "the disk is full"
        )
        return (
            f"artifact {manifest.artifact_key[:12]} of model {manifest.model} needs {needed} bytes more in the local "
            f"cache and {room} are free after evicting all that is not in use: {limit}; "
            f"free {needed - room} bytes on the disk of the data directory or raise the quota"
        )

    def _evict(self, until_bytes: int | None, keep: set[str]) -> None:
        """Remove what no kept manifest names, oldest first, until that many bytes are free (None: all of it)."""
        needed = self._digests_of(keep)
        for path in sorted(self._evictable(needed), key=_modified):
            if until_bytes is not None and self._room_bytes() >= until_bytes:
                return
            size_bytes = _size_bytes(path / "data") if path.is_dir() else _size_bytes(path)
            with disk_errors("remove a file"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            _log.info("cache.evicted digest=%s size_bytes=%d", path.name, size_bytes)
        for path in (*self._manifests.iterdir(), *self._envelopes.iterdir()):
            if DIGEST_PATTERN.fullmatch(path.name) and path.name not in keep:
                clear_place(path)

    def _evictable(self, needed: set[str]) -> list[Path]:
        whole = {path.name for path in self._stored_files()}
        left = [path for path in self._partials.iterdir() if path.name in whole or path.name not in needed]
        return [*(path for path in self._stored_files() if path.name not in needed), *left]

    def _digests_of(self, manifests: set[str]) -> set[str]:
        digests: set[str] = set()
        for digest in manifests:
            try:
                digests.update(entry.digest for entry in needed_files(self.manifest(digest).manifest))
            except DovetailError as exc:
                _log.warning("cache.manifest_unreadable digest=%s why=%r", digest, str(exc))
        return digests

    def _stored_files(self) -> Iterator[Path]:
        return self._files.glob("*/*")


def _keep(path: Path, data: bytes, what: str) -> None:
    """Write a small file unless it is there with that content."""
    if _read(path, len(data) + 1) != data:
        make_folder(path.parent, mode=PRIVATE_FOLDER_MODE)
        clear_place(path)
        write_durable(path, data, what=what)


def _read(path: Path, limit_bytes: int) -> bytes | None:
    """The start of a file; None if there is none. Raises UnavailableError if the disk cannot be read."""
    with disk_errors("read a file"):
        try:
            with path.open("rb") as file:
                return file.read(limit_bytes)
        except FileNotFoundError:
            return None
        except IsADirectoryError:
            return b""  # not what any digest says, so it is removed like any damaged file


def _disk_free_bytes(path: Path) -> int:
    stats = os.statvfs(path)
    return stats.f_bavail * stats.f_frsize


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _modified(path: Path) -> float:
    return path.stat().st_mtime


def _remove_leftovers(root: Path) -> None:
    for path in root.rglob(f"*{TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)
